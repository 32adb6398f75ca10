//! What the tap costs: one FastCGI server asked directly, through `gatespan bridge`, through a relay of a few lines that only passes bytes on, and
//! through `gatespan tap` with all it can do.
//!
//! `cargo bench --all-features --bench tap` measures; `--rounds N` and `--seconds N` after `--` say how often and how long. All take turns within a round,
//! so that each ratio is of figures that were measured next to each other. Servers share one processor and clients have the other, so that processor
//! time is what limits the rate; it is read from /proc, for all processes behind the socket together.

#[path = "servers/load.rs"]
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod load;
#[path = "servers/peers.rs"]
#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod peers;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use load::Extent;
use rustix::event::Timespec;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What Linux counts processor time in, on every architecture that there is a choice for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Which of the contenders the others are compared with.
const DIRECT: usize = 0;
const BRIDGE: usize = 1;
const RELAY: usize = 2;

/// How many connections are open at once, for a line of text and for 1 MiB.
const CONNECTIONS: (usize, usize) = (32, 4);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some("--serve") = arguments.first().map(String::as_str) {
        let argument = |index: usize| arguments.get(index).map(String::as_str);
        return peers::serve(argument(1).unwrap_or_default(), argument(2));
    }
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &[String]) -> Result<()> {
    let (mut rounds, mut seconds) = (5_usize, 1.0_f64);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("expected a value after {argument}"));
        match argument.as_str() {
            "--rounds" => rounds = value()?.parse()?,
            "--seconds" => seconds = value()?.parse()?,
            // What cargo adds by itself.
            "--bench" => {}
            other => return Err(format!("expected --rounds or --seconds, got {other}").into()),
        }
    }
    let folder = tempfile::tempdir()?;
    println!(
        "A FastCGI server, directly and through others, {rounds} rounds of {seconds} s; medians of those of each round."
    );
    println!("Processor time is that of all processes behind the clients' socket, for one request.");
    for (title, server, is_large) in [
        ("a line of text, kept connections", "gatespan-one-thread", false),
        ("a line of text, a connection each", "gatespan-one-thread", false),
        ("1 MiB, kept connections", "gatespan-large", true),
    ] {
        let keep = !title.ends_with("each");
        let contenders = contenders(folder.path(), server)?;
        let request = load::request("GET", 0, keep);
        let mut samples: Vec<Vec<(f64, f64)>> = Vec::new();
        for _ in 0..rounds {
            let round = contenders.iter().map(|contender| {
                let extent = Extent {
                    connections: if is_large { CONNECTIONS.1 } else { CONNECTIONS.0 },
                    time: Duration::from_secs_f64(seconds),
                    requests: usize::MAX,
                    sleep: Timespec { tv_sec: 0, tv_nsec: 0 },
                };
                let before = contender.processor_time()?;
                let (count, time) = match (is_large, keep) {
                    (true, _) => load::large(&contender.socket, &request, extent),
                    (false, true) => load::kept(&contender.socket, &request, extent),
                    (false, false) => load::closed(&contender.socket, &request, extent),
                }
                .map_err(|error| format!("{}: {error}", contender.name))?;
                let used = contender.processor_time()? - before;
                Ok((count as f64 / time.as_secs_f64(), used / count as f64 * 1e6))
            });
            samples.push(round.collect::<Result<_>>()?);
        }
        println!(
            "\n{title:<36} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "requests/s", "to direct", "to relay", "µs each", "to direct", "to bridge", "to relay"
        );
        for (index, contender) in contenders.iter().enumerate() {
            let middle = |of: &dyn Fn(&[(f64, f64)]) -> f64| median(samples.iter().map(|round| of(round)));
            println!(
                "{:<36} {:>10.0} {:>9.2} {:>9.2} {:>9.1} {:>9.2} {:>9.2} {:>9.2}",
                contender.name,
                middle(&|round| round[index].0),
                middle(&|round| round[index].0 / round[DIRECT].0),
                middle(&|round| round[index].0 / round[RELAY].0),
                middle(&|round| round[index].1),
                middle(&|round| round[index].1 / round[DIRECT].1),
                middle(&|round| round[index].1 / round[BRIDGE].1),
                middle(&|round| round[index].1 / round[RELAY].1),
            );
        }
    }
    Ok(())
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One way to the server.
struct Contender {
    name: &'static str,
    socket: PathBuf,
    /// Those behind the socket, the server of its own last.
    processes: Vec<Process>,
}

impl Contender {
    /// In seconds, of all its processes together.
    fn processor_time(&self) -> Result<f64> {
        let mut ticks = 0;
        for process in &self.processes {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.0.id()))?;
            // proc(5): the name stands in brackets, and after it utime and stime are the 12th and 13th.
            let (_, rest) = stat.rsplit_once(')').ok_or("expected a name in brackets")?;
            let numbers: Vec<&str> = rest.split_whitespace().collect();
            ticks += numbers[11].parse::<u64>()? + numbers[12].parse::<u64>()?;
        }
        Ok(ticks as f64 / TICKS_PER_SECOND)
    }
}

/// A running process, ended with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn contenders(folder: &Path, server: &'static str) -> Result<Vec<Contender>> {
    let tool = tool()?;
    let ways: [(&'static str, Option<(&str, &[&str])>); 7] = [
        ("directly", None),
        ("gatespan bridge", Some(("bridge", &[]))),
        ("a bare relay", Some(("relay", &[]))),
        ("gatespan tap --silent", Some(("tap", &["--silent"]))),
        ("gatespan tap, with lines", Some(("tap", &[]))),
        ("gatespan tap, with lines of JSON", Some(("tap", &["--json"]))),
        ("gatespan tap --show all --silent", Some(("tap", &["--show", "all", "--silent"]))),
    ];
    let mut contenders = Vec::new();
    for (number, (name, way)) in ways.into_iter().enumerate() {
        let path = |what: &str| folder.join(format!("{server}-{number}.{what}"));
        let application = path("app");
        let _ = fs::remove_file(&application);
        // A server of its own, so that its processor time is told from that of the others.
        let listener = OwnedFd::from(UnixListener::bind(&application)?);
        let mut command = pinned(std::env::current_exe()?);
        command.args(["--serve", server]).stdin(Stdio::from(listener));
        let mut processes = vec![Process(command.stdout(Stdio::null()).spawn()?)];
        let mut socket = application.clone();
        if let Some((subcommand, options)) = way {
            socket = path("web");
            let _ = fs::remove_file(&socket);
            let mut command;
            if subcommand == "relay" {
                command = pinned(std::env::current_exe()?);
                command.args(["--serve", subcommand]).arg(&application);
                command.stdin(Stdio::from(OwnedFd::from(UnixListener::bind(&socket)?)));
            } else {
                command = pinned(tool.clone());
                command.arg(subcommand).arg(format!("fastcgi:{}", socket.display()));
                command.arg(format!("fastcgi:{}", application.display())).args(options).stdin(Stdio::null());
            }
            if subcommand == "tap" {
                command.arg("-o").arg(path("rec")).args(["--rotate", "64M", "--keep", "0"]);
            }
            let log = fs::File::create(path("log"))?;
            processes.insert(0, Process(command.stdout(Stdio::null()).stderr(log).spawn()?));
        }
        let start = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            if start.elapsed() > Duration::from_secs(10) {
                return Err(
                    format!("{name} did not start: {}", fs::read_to_string(path("log")).unwrap_or_default()).into()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        contenders.push(Contender { name, socket, processes });
    }
    Ok(contenders)
}

/// On the first processor; the clients have the others.
fn pinned(program: PathBuf) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program);
    command
}

/// The tool, beside the folder of this binary.
fn tool() -> Result<PathBuf> {
    let myself = std::env::current_exe()?;
    let path = myself.ancestors().nth(2).unwrap_or(Path::new(".")).join("gatespan");
    match path.exists() {
        true => Ok(path),
        false => Err(format!(
            "{}: expected the program there: cargo build --release --all-features --bin gatespan",
            path.display()
        )
        .into()),
    }
}
