//! HTTP to FastCGI, web servers side by side: nginx, lighttpd, h2o, Apache's mod_proxy_fcgi, Caddy, and `gatespan bridge http: fastcgi:`; and as a
//! CGI program, beside cgi-fcgi.
//!
//! Needs `cargo build --release --all-features --bin gatespan`, and then `cargo bench --all-features --bench forward`. `--php`, `--bare`, `--syscalls`, `--large` and
//! `--cgi` after `--` choose tables, `--rounds N` and `--seconds N` say how often and how long, `--quick` that little is to be measured of everything, `--only NAME`
//! limits the web servers to nginx, ours and that one, and `--beside PROGRAM` measures another build of the tool too. What is missing on the machine is an error that says
//! how to get it. All processes share the machine. The servers take turns, since a shared machine is faster at one time than at another: compare figures of one table
//! only.

#[path = "forward/fronts.rs"]
mod fronts;
#[path = "servers/load.rs"]
#[allow(dead_code, reason = "this benchmark uses a part of it")]
mod load;
#[path = "servers/peers.rs"]
#[allow(dead_code, reason = "this benchmark uses a part of it")]
mod peers;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use fronts::{Contender, Front, Fronts, Place, Wanted, What};
use load::{Extent, Lengths};
use peers::LARGE;
use rustix::event::Timespec;

/// How many clients there are at once.
const CLIENTS: usize = 32;

/// How many there are for large bodies.
const LARGE_CLIENTS: usize = 4;

/// How many processes PHP has for each front.
const PHP_PROCESSES: usize = 16;

/// How many clients there are where PHP's connections are kept. Each occupies a process, and each of a front's two workers keeps those that it has
/// made for itself.
const KEPT_PHP_CLIENTS: usize = PHP_PROCESSES / 2;

/// How long an upload is.
const UPLOAD: usize = 10 * 1024 * 1024;

const MIB: f64 = 1024.0 * 1024.0;

/// What the small answers end with.
const END: &[u8] = b"\r\n\r\nHello, world!\n";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some("--serve") = arguments.first().map(String::as_str) {
        let name = arguments.get(1).map(String::as_str).unwrap_or_default();
        return peers::serve(name, arguments.get(2).map(String::as_str));
    }
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What was asked for.
struct Plan {
    rounds: usize,
    seconds: f64,
    only: Option<String>,
    beside: Option<PathBuf>,
    chosen: Vec<String>,
}

impl Plan {
    fn wants(&self, table: &str) -> bool {
        self.chosen.is_empty() || self.chosen.iter().any(|chosen| chosen == table)
    }

    fn extent(&self, connections: usize) -> Extent {
        let time = Duration::from_secs_f64(self.seconds);
        Extent { connections, time, requests: usize::MAX, sleep: Timespec { tv_sec: 1, tv_nsec: 0 } }
    }
}

fn measure(arguments: &[String]) -> Result<()> {
    let mut plan = Plan { rounds: 7, seconds: 0.5, only: None, beside: None, chosen: Vec::new() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("expected a value after {argument}"));
        match argument.as_str() {
            "--rounds" => plan.rounds = value()?.parse()?,
            "--seconds" => plan.seconds = value()?.parse()?,
            "--quick" => (plan.rounds, plan.seconds) = (1, 0.1),
            "--beside" => plan.beside = Some(value()?.into()),
            "--only" => plan.only = Some(value()?.clone()),
            "--php" | "--bare" | "--syscalls" | "--large" | "--cgi" => plan.chosen.push(argument.clone()),
            // What cargo adds by itself.
            "--bench" => {}
            other => {
                let options =
                    "--php, --bare, --syscalls, --large, --cgi, --rounds, --seconds, --quick, --only or --beside";
                return Err(format!("expected {options}, got {other}").into());
            }
        }
    }
    if plan.rounds == 0 {
        return Err("expected at least one round".into());
    }
    let folder = tempfile::tempdir()?;
    let place = fronts::prepare(folder.path(), plan.beside.clone())?;
    if plan.wants("--cgi") {
        cgi(&plan, &place)?;
        println!();
    }
    if ["--php", "--bare", "--syscalls", "--large"].iter().any(|table| plan.wants(table)) {
        let wanted = Wanted { php: plan.wants("--php"), large: plan.wants("--large") };
        let is_wanted = |name: &str| plan.only.as_deref().is_none_or(|only| name == "nginx" || name == only);
        let fronts = Fronts::start(&place, &wanted, is_wanted)?;
        forwarded(&plan, &place, &fronts)?;
    }
    Ok(())
}

/// The tables of web servers.
fn forwarded(plan: &Plan, place: &Place, fronts: &Fronts) -> Result<()> {
    println!(
        "HTTP to FastCGI; {} rounds of {} s. CPU is the web server's, in µs a request.",
        plan.rounds, plan.seconds
    );
    for (table, name, what, clients) in [
        ("--php", "php-fpm, closed", What::PhpClosed, CLIENTS),
        ("--php", "php-fpm, kept", What::PhpKept, KEPT_PHP_CLIENTS),
        ("--bare", "bare loop, closed", What::Closed, CLIENTS),
        ("--bare", "bare loop, kept", What::Kept, CLIENTS),
    ] {
        if plan.wants(table) {
            let samples =
                rounds(plan, fronts, what, |front, path| load::http(front.port, path, END, plan.extent(clients)))?;
            println!(
                "\n{:<44} {:>10} {:>7} {:>8} {:>7}",
                format!("{name}, {clients} clients"),
                "requests/s",
                "x nginx",
                "CPU µs",
                "x nginx"
            );
            samples.print(|rate| format!("{rate:>10.0}"), 1.0);
        }
    }
    if plan.wants("--large") {
        println!(
            "\nKept connections where there are such, {LARGE_CLIENTS} clients. CPU is the web server's, in µs a MiB."
        );
        for (name, what, lengths, size) in [
            ("1 MiB answers", What::Large, Lengths { request: 0, answer: LARGE }, LARGE),
            ("10 MiB uploads", What::Upload, Lengths { request: UPLOAD, answer: 14 }, UPLOAD),
        ] {
            let samples = rounds(plan, fronts, what, |front, path| {
                load::http_large(front.port, path, lengths, plan.extent(LARGE_CLIENTS))
            })?;
            println!("\n{name:<44} {:>10} {:>7} {:>8} {:>7}", "MB/s", "x nginx", "CPU µs", "x nginx");
            samples.print(|rate| format!("{:>10.0}", rate * size as f64 / 1e6), size as f64 / MIB);
        }
    }
    if plan.wants("--syscalls") {
        syscalls(place, fronts)?;
    }
    Ok(())
}

/// One run of one contender.
#[derive(Clone, Copy)]
struct Sample {
    /// Requests a second.
    rate: f64,
    /// Microseconds of processor time a request.
    cpu: f64,
}

/// The rounds of one table.
struct Samples {
    contenders: Vec<Contender>,
    rounds: Vec<Vec<Sample>>,
}

/// Each contender in turn, as many rounds as planned.
fn rounds(
    plan: &Plan,
    fronts: &Fronts,
    what: What,
    load: impl Fn(&Front, &str) -> io::Result<(usize, Duration)>,
) -> Result<Samples> {
    let contenders = fronts.of(what);
    let one = |contender: &Contender| {
        let front = &fronts.fronts[contender.front];
        let before = front.spent()?;
        let loaded = load(front, contender.path);
        let (count, time) = loaded.map_err(|error| format!("{}, {}: {error}", contender.name, contender.path))?;
        let spent = front.spent()?.saturating_sub(before);
        Ok(Sample { rate: count as f64 / time.as_secs_f64(), cpu: spent.as_secs_f64() * 1e6 / count as f64 })
    };
    let rounds = (0..plan.rounds).map(|_| contenders.iter().map(one).collect::<Result<_>>()).collect::<Result<_>>()?;
    Ok(Samples { contenders, rounds })
}

impl Samples {
    /// A line for each contender: medians, and the medians of the ratios to the first, which is nginx, in the same round.
    fn print(&self, rate: impl Fn(f64) -> String, parts: f64) {
        for (index, contender) in self.contenders.iter().enumerate() {
            let of = |value: fn(&Sample) -> f64| median(self.rounds.iter().map(|round| value(&round[index])));
            let ratio = |value: fn(&Sample) -> f64| {
                median(self.rounds.iter().map(|round| value(&round[index]) / value(&round[0])))
            };
            println!(
                "{:<44} {} {:>7.2} {:>8.1} {:>7.2}",
                contender.name,
                rate(of(|sample| sample.rate)),
                ratio(|sample| sample.rate),
                of(|sample| sample.cpu) / parts,
                ratio(|sample| sample.cpu)
            );
        }
    }
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// System calls a request, counted by strace while a front forwards to the bare loop.
fn syscalls(place: &Place, fronts: &Fronts) -> Result<()> {
    const REQUESTS: usize = 4_000;
    let extent = Extent {
        connections: CLIENTS,
        time: Duration::from_secs(60),
        requests: REQUESTS,
        sleep: Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    println!("\nSystem calls a request, {REQUESTS} requests of {CLIENTS} clients to the bare loop.");
    for (name, what) in [("closed", What::Closed), ("kept", What::Kept)] {
        println!("\n{name}");
        for contender in fronts.of(what) {
            let front = &fronts.fronts[contender.front];
            let output = place.path("strace");
            let mut strace = Command::new("strace");
            strace.args(["-c", "-f", "-q", "-o"]).arg(&output).stderr(Stdio::null());
            let processes = front.processes()?;
            for process in &processes {
                strace.args(["-p", &process.to_string()]);
            }
            let mut strace = strace.spawn().map_err(|error| format!("strace: {error}: apt-get install strace"))?;
            wait_for_tracer(&processes)?;
            let (count, _) = load::http(front.port, contender.path, END, extent)?;
            // Its end is when it prints.
            Command::new("kill").args(["-INT", &strace.id().to_string()]).status()?;
            strace.wait()?;
            let calls = parse_strace(&fs::read_to_string(&output)?);
            let total: u64 = calls.values().sum();
            let mut calls: Vec<_> = calls.into_iter().collect();
            calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let list = calls.iter().map(|(name, calls)| (name, *calls as f64 / count as f64));
            let list: Vec<_> =
                list.filter(|(_, calls)| *calls >= 0.05).map(|(name, calls)| format!("{name} {calls:.2}")).collect();
            println!("{:<20} {:>6.2}   {}", contender.name, total as f64 / count as f64, list.join(", "));
        }
    }
    Ok(())
}

fn wait_for_tracer(processes: &[u32]) -> Result<()> {
    let start = Instant::now();
    for process in processes {
        let status = format!("/proc/{process}/status");
        while fs::read_to_string(&status)?.lines().any(|line| line == "TracerPid:\t0") {
            if start.elapsed() > Duration::from_secs(5) {
                return Err("strace could not trace the server".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // The other threads follow.
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

/// `% time, seconds, usecs/call, calls, [errors,] syscall`, between lines of dashes.
fn parse_strace(table: &str) -> BTreeMap<String, u64> {
    let rows =
        table.lines().skip_while(|line| !line.starts_with("---")).skip(1).take_while(|line| !line.starts_with("---"));
    rows.filter_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        Some((fields.last()?.to_string(), fields.get(3)?.parse().ok()?))
    })
    .collect()
}

/// From the start of a CGI program to its end: one that answers by itself, and those that ask a FastCGI server.
fn cgi(plan: &Plan, place: &Place) -> Result<()> {
    let _server = place.bare("cgi.sock", peers::HELLO)?;
    let socket = place.path("cgi.sock");
    let alone = place.path("hello_c");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/hello.c");
    let status = Command::new("gcc").arg("-O2").arg("-o").arg(&alone).arg(&source).status();
    if !status.map_err(|error| format!("gcc: {error}: apt-get install gcc libc6-dev"))?.success() {
        return Err(format!("gcc could not compile {}", source.display()).into());
    }
    let cgi_fcgi = Path::new("/usr/bin/cgi-fcgi");
    if !cgi_fcgi.exists() {
        return Err("/usr/bin/cgi-fcgi is missing: apt-get install libfcgi-bin".into());
    }
    let address = format!("fastcgi:{}", socket.display());
    let connect = ["-bind", "-connect", socket.to_str().unwrap_or_default()];
    let bridge = ["bridge", "cgi:", &address];
    let mut programs: Vec<(&str, &Path, &[&str])> = vec![
        ("cgi-fcgi", cgi_fcgi, &connect),
        ("C, answers by itself", &alone, &[]),
        ("Gatespan", &place.tool, &bridge),
    ];
    if let Some(other) = &place.other_tool {
        programs.push(("Gatespan, other", other, &bridge));
    }
    let runs = plan.rounds * 50;
    let variables = load::variables("GET", 0);
    let mut times = vec![Vec::new(); programs.len()];
    for run in 0..runs + 5 {
        for (index, (name, program, arguments)) in programs.iter().enumerate() {
            let mut command = Command::new(program);
            command.args(*arguments).env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
            let start = Instant::now();
            let output = command.spawn()?.wait_with_output()?;
            let time = start.elapsed();
            if !output.stdout.ends_with(END) || !output.status.success() {
                let got = output.stdout.escape_ascii();
                return Err(format!("{name}: expected another answer than \"{got}\"").into());
            }
            // The first ones bring the programs into memory.
            if run >= 5 {
                times[index].push(time.as_secs_f64() * 1e3);
            }
        }
    }
    println!(
        "As a CGI program, from its start to its end: {runs} runs of each in turn, ms; the difference is to cgi-fcgi in the same turn."
    );
    println!("{:<24} {:>8} {:>8} {:>12} {:>12}", "", "mean", "median", "mean diff.", "median diff.");
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    for (index, (name, ..)) in programs.iter().enumerate() {
        let differences: Vec<f64> = times[index].iter().zip(&times[0]).map(|(time, base)| time - base).collect();
        println!(
            "{name:<24} {:>8.3} {:>8.3} {:>12.3} {:>12.3}",
            mean(&times[index]),
            median(times[index].iter().copied()),
            mean(&differences),
            median(differences.iter().copied())
        );
    }
    Ok(())
}
