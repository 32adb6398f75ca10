//! Running programs as CGI scripts are run, side by side: a bare loop in C (`benches/peers/vfork_loop.c`), std's and tokio's
//! `Command`, our `Process`, and our `Host` with all that a request brings: the script is found, its environment made, its head read and checked.
//!
//! `cargo bench --bench cgi_host` measures everything; `--rounds N` and `--seconds N` after `--` say how often and how long, `--only NAME` which beside the
//! bare loop, `--quick` leaves out the program with libc and the touched memory. Each measurement is a process of its own, so that its processor time is its
//! own too; they take turns, since a shared machine is faster at one time than at another: compare figures of one table only.

#[path = "servers/load.rs"]
#[allow(dead_code, reason = "this benchmark uses a part of it")]
mod load;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gatespan::Environ;
use gatespan::application::Variables;
use gatespan::application::driver::call;
use gatespan::upstream::cgi::process::{Input, Process, Settings};
use gatespan::upstream::cgi::spawn;
use gatespan::upstream::cgi::{Config, Host};
use gatespan::upstream::watcher::Watcher;
use tokio::io::AsyncReadExt;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Those that run in this binary; the bare loop comes first.
const CONTENDERS: [(&str, fn(&Job) -> Result<usize>); 4] = [
    ("std Command", std_command),
    ("tokio Command", tokio_command),
    ("gatespan Process", our_process),
    ("gatespan Host", our_host),
];

/// The bare loop, whose programs get no environment, and the same with the variables that the host's programs get.
const BARE: &str = "bare vfork loop";
const BARE_WITH_VARIABLES: &str = "the same, with variables";

/// What the programs' answer ends with.
const ANSWER: &[u8] = b"\r\n\r\nHello, world!\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("--run") => run(&arguments[1..]),
        _ => measure(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &[String]) -> Result<()> {
    let (mut rounds, mut seconds, mut only, mut is_quick) = (7_usize, 1.0_f64, None, false);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("expected a value after {argument}"));
        match argument.as_str() {
            "--rounds" => rounds = value()?.parse()?,
            "--seconds" => seconds = value()?.parse()?,
            "--only" => only = Some(value()?.clone()),
            "--quick" => is_quick = true,
            // What cargo adds by itself.
            "--bench" => {}
            other => return Err(format!("expected --rounds, --seconds, --only or --quick, got {other}").into()),
        }
    }
    let folder = tempfile::tempdir()?;
    let bare = compile(folder.path(), "vfork_loop", &["-lpthread"])?;
    let without = compile(folder.path(), "hello_nolibc", &["-static", "-nostdlib"])?;
    let with = compile(folder.path(), "hello", &["-static"])?;
    let myself = std::env::current_exe()?;
    println!(
        "Programs run to their end. CPU is the parent's, in µs a run; x bare is the median of the ratios of each round."
    );
    for (what, program, mebibytes) in [
        ("no libc", &without, 0),
        ("no libc, 1 GiB touched", &without, 1024),
        ("static C", &with, 0),
        ("static C, 1 GiB touched", &with, 1024),
    ] {
        if is_quick && (program == &with || mebibytes > 0) {
            continue;
        }
        for at_once in [1, 2, 8] {
            let mut samples: Vec<Vec<Sample>> = Vec::new();
            let names: Vec<&str> = [BARE, BARE_WITH_VARIABLES]
                .into_iter()
                .chain(
                    CONTENDERS
                        .iter()
                        .map(|(name, _)| *name)
                        .filter(|name| only.as_deref().is_none_or(|only| name.contains(only))),
                )
                .collect();
            for _ in 0..rounds {
                let round = names.iter().map(|name| {
                    let mut command = match *name {
                        BARE | BARE_WITH_VARIABLES => {
                            let mut command = Command::new(&bare);
                            command.env_clear();
                            if *name == BARE_WITH_VARIABLES {
                                command.envs(load::variables("GET", 0));
                            }
                            command
                        }
                        name => {
                            let mut command = Command::new(&myself);
                            command.arg("--run").arg(name);
                            command
                        }
                    };
                    command.arg(program).args([at_once.to_string(), seconds.to_string(), mebibytes.to_string()]);
                    sample(command)
                });
                samples.push(round.collect::<Result<_>>()?);
            }
            println!(
                "\n{:<34} {:>8} {:>7} {:>9} {:>8}",
                format!("{what}, {at_once} at once"),
                "runs/s",
                "x bare",
                "x same",
                "CPU µs"
            );
            for (index, name) in names.iter().enumerate() {
                let rate = median(samples.iter().map(|round| round[index].rate));
                let [ratio, same] =
                    [0, 1].map(|bare| median(samples.iter().map(|round| round[index].rate / round[bare].rate)));
                let cpu = median(samples.iter().map(|round| round[index].cpu));
                println!("{name:<34} {rate:>8.0} {ratio:>7.2} {same:>9.2} {cpu:>8.1}");
            }
        }
    }
    Ok(())
}

fn compile(folder: &Path, name: &str, options: &[&str]) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name).with_extension("c");
    let program = folder.join(name);
    let status = Command::new("gcc").arg("-O2").arg("-o").arg(&program).arg(&source).args(options).status();
    match status.map_err(|error| format!("gcc: {error}: apt-get install gcc libc6-dev"))?.success() {
        true => Ok(program),
        false => Err(format!("gcc could not compile {}: apt-get install gcc libc6-dev", source.display()).into()),
    }
}

struct Sample {
    rate: f64,
    cpu: f64,
}

fn sample(mut command: Command) -> Result<Sample> {
    let output = command.stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match (output.status.success(), numbers.as_slice()) {
        (true, &[runs, seconds, cpu]) if runs > 0.0 => Ok(Sample { rate: runs / seconds, cpu: cpu * 1e6 / runs }),
        _ => Err(format!("{command:?}: expected runs and times, got {text:?} and {}", output.status).into()),
    }
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What one process is to do.
struct Job {
    program: String,
    at_once: usize,
    time: Duration,
    watcher: Watcher,
}

/// One measurement: this process is the parent.
fn run(arguments: &[String]) -> Result<()> {
    let [name, program, at_once, seconds, mebibytes] = arguments else {
        return Err("expected a contender, a program, how many, how long and how much memory".into());
    };
    let (_, contender) = CONTENDERS.iter().find(|(own, _)| own == name).ok_or("expected a contender's name")?;
    let watcher = Watcher::start()?;
    let touched = vec![1_u8; mebibytes.parse::<usize>()? << 20];
    let job = Job {
        program: program.clone(),
        at_once: at_once.parse()?,
        time: Duration::from_secs_f64(seconds.parse()?),
        watcher,
    };
    let (start, before) = (Instant::now(), spent()?);
    let runs = contender(&job)?;
    println!("{runs} {} {}", start.elapsed().as_secs_f64(), spent()? - before);
    drop(std::hint::black_box(touched));
    Ok(())
}

/// The processor time of this process with all its threads, the ended ones too, in seconds.
fn spent() -> Result<f64> {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name before them is in parentheses and may hold anything.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(2).map(str::parse).collect::<std::result::Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / TICKS_A_SECOND)
}

fn std_command(job: &Job) -> Result<usize> {
    use std::os::unix::process::CommandExt;
    let over = AtomicBool::new(false);
    let one = || -> Result<()> {
        let mut command = Command::new(&job.program);
        command.env_clear().current_dir("/").process_group(0);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut answer = Vec::with_capacity(4096);
        child.stdout.take().ok_or("the output is piped")?.read_to_end(&mut answer)?;
        check(&answer, child.wait()?)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..job.at_once)
            .map(|_| {
                scope.spawn(|| -> Result<usize> {
                    let mut runs = 0;
                    while !over.load(Ordering::Relaxed) {
                        one()?;
                        runs += 1;
                    }
                    Ok(runs)
                })
            })
            .collect();
        std::thread::sleep(job.time);
        over.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().map_err(|_| "a thread panicked")?).sum()
    })
}

fn check(answer: &[u8], status: std::process::ExitStatus) -> Result<()> {
    match answer.ends_with(ANSWER) && status.success() {
        true => Ok(()),
        false => Err(format!("expected the answer and success, got {answer:?} and {status}").into()),
    }
}

/// So many tasks, each running one program after the other, on a runtime such as the tool has for scripts.
fn tasks<F: Future<Output = Result<()>> + Send + 'static>(
    job: &Job,
    one: impl Fn() -> F + Clone + Send + 'static,
) -> Result<usize> {
    let threads = std::thread::available_parallelism()?.get() + 1;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let until = Instant::now() + job.time;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..job.at_once {
            let one = one.clone();
            tasks.spawn(async move {
                let mut runs = 0;
                while Instant::now() < until {
                    one().await?;
                    runs += 1;
                }
                Result::Ok(runs)
            });
        }
        let mut runs = 0;
        while let Some(task) = tasks.join_next().await {
            runs += task??;
        }
        Result::Ok(runs)
    })
}

fn tokio_command(job: &Job) -> Result<usize> {
    let program = job.program.clone();
    tasks(job, move || {
        let program = program.clone();
        async move {
            let mut command = tokio::process::Command::new(program);
            command.env_clear().current_dir("/").process_group(0);
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let mut answer = Vec::with_capacity(4096);
            child.stdout.take().ok_or("the output is piped")?.read_to_end(&mut answer).await?;
            check(&answer, child.wait().await?)
        }
    })
}

fn our_process(job: &Job) -> Result<usize> {
    let program = std::ffi::CString::new(job.program.clone())?;
    let mut settings = Settings::default();
    settings.watcher = Some(job.watcher.clone());
    tasks(job, move || {
        let (program, settings) = (program.clone(), settings.clone());
        async move {
            let mut process = Process::start(spawn::Command::new(program), Input::Nothing, &settings).await?;
            let mut answer = Vec::with_capacity(4096);
            process.stdout.take().ok_or("the output is piped")?.read_to_end(&mut answer).await?;
            check(&answer, process.exited().await?)
        }
    })
}

/// The host, called as a gateway calls it, with the variables that nginx sends.
fn our_host(job: &Job) -> Result<usize> {
    let program = PathBuf::from(&job.program);
    let folder = program.parent().ok_or("the program lies in a folder")?;
    let mut config = Config::default();
    config.roots = vec![folder.to_owned()];
    config.watcher = Some(job.watcher.clone());
    let host = Arc::new(Host::new(config)?);
    let mut variables = load::variables("GET", 0);
    variables.push(("SCRIPT_FILENAME".to_owned(), job.program.clone()));
    let variables: Arc<[(String, String)]> = variables.into();
    let text = |error: gatespan::Error| error.to_string();
    tasks(job, move || {
        let (host, variables) = (host.clone(), variables.clone());
        async move {
            let variables = variables.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            let mut response = call(host, Environ::new(Variables::from_iter(variables))).await.map_err(text)?;
            let answer = response.body.read_to_end(4096).await.map_err(text)?;
            match ANSWER.ends_with(&answer) && !answer.is_empty() {
                true => Ok(()),
                false => Err(format!("expected the answer, got {answer:?}").into()),
            }
        }
    })
}
