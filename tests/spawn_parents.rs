//! Programs whose parent is counted or killed: this binary starts itself as that parent.

#[path = "support/hosted.rs"]
mod hosted;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gatespan::upstream::cgi::process::{Input, Process, Settings};
use gatespan::upstream::cgi::spawn::Command;
use gatespan::upstream::watcher::Watcher;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::AsyncReadExt;

/// What this binary is to be when it is not the test.
const PART: &str = "GATESPAN_TEST_PART";
/// What a test's processes can be known by, since what they start inherits it.
const MARK: &str = "GATESPAN_TEST_MARK";
/// How long anything may take on a busy machine.
const IN_TIME: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match std::env::var(PART).as_deref() {
        Ok("many") => many(),
        Ok("programs") => programs(),
        Ok("storm") => storm(),
        _ => {
            return hosted::main(&[
                ("two_thousand_programs_leave_nothing_behind", two_thousand_programs),
                ("the_groups_of_a_killed_parent_are_ended", the_groups_of_a_killed_parent_are_ended),
                ("the_watcher_ends_with_its_parent_and_leaves_alone_what_was_left_alone", the_watcher_ends),
                ("a_parent_killed_while_it_starts_programs_leaves_none", a_parent_killed_while_it_starts_programs),
            ]);
        }
    }
    ExitCode::SUCCESS
}

/// This binary as a parent, the leader of a group of its own.
fn parent(part: &str, mark: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.env(PART, part).env(MARK, mark).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

/// A text that no other process has in its environment.
fn mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// The running processes that a test's mark is on, with their names.
fn marked(mark: &str) -> Vec<(i32, String)> {
    let wanted = format!("{MARK}={mark}\0");
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let number = path.file_name()?.to_str()?.parse().ok()?;
        // A process that has ended has no environment any more.
        let environment = fs::read(path.join("environ")).ok()?;
        let is_marked = environment.windows(wanted.len()).any(|part| part == wanted.as_bytes());
        let name = fs::read_to_string(path.join("comm")).ok()?;
        is_marked.then(|| (number, name.trim_end().to_owned()))
    });
    processes.collect()
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < IN_TIME, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn watcher_of(mark: &str) -> i32 {
    let watchers = || -> Vec<i32> {
        marked(mark).into_iter().filter(|(_, name)| name == "gatespan-watch").map(|(number, _)| number).collect()
    };
    // It takes its name when its turn comes.
    until("the watcher has its name", || !watchers().is_empty());
    assert_eq!(watchers().len(), 1, "one watcher of one parent");
    watchers()[0]
}

/// The fields of a process's state from its parent's number on.
fn stat(number: i32) -> Vec<i64> {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(1);
    fields.take(3).map(|field| field.parse().unwrap()).collect()
}

fn shell(script: &str) -> Command {
    let mut command = Command::new(c"/bin/sh".to_owned());
    command.arguments.extend([c"-c".to_owned(), CString::new(script).unwrap()]);
    command.environment.push(c"PATH=/usr/bin:/bin".to_owned());
    if let Ok(mark) = std::env::var(MARK) {
        command.environment.push(CString::new(format!("{MARK}={mark}")).unwrap());
    }
    command
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

/// A parent of programs of several kinds, until its input ends.
fn programs() {
    let mut settings = Settings::default();
    settings.watcher = Some(Watcher::start().unwrap());
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let told = told.display();
    runtime.block_on(async {
        let ended = shell("sleep 1000 >/dev/null 2>&1 & echo $!");
        let mut ended = Process::start(ended, Input::Nothing, &settings).await.unwrap();
        let mut left = String::new();
        ended.stdout.take().unwrap().read_to_string(&mut left).await.unwrap();
        assert!(ended.exited().await.unwrap().success());
        let patient = shell(&format!("trap 'echo told > {told}; exit' TERM; echo ready; sleep 1000 & wait"));
        let stubborn = shell("trap '' TERM; echo ready; sleep 1000 & sleep 1000");
        let mut running = Vec::new();
        for command in [patient, stubborn] {
            let mut process = Process::start(command, Input::Pipe, &settings).await.unwrap();
            let mut ready = [0; 6];
            process.stdout.as_mut().unwrap().read_exact(&mut ready).await.unwrap();
            running.push(process);
        }
        println!("{told}\n{}", left.trim());
        let _ = std::io::stdin().read(&mut [0]);
    });
}

fn the_groups_of_a_killed_parent_are_ended() {
    let mark = mark();
    let (mut parent, mut output) = parent("programs", &mark);
    let (told, left): (String, i32) = (line(&mut output), line(&mut output).parse().unwrap());
    let own = parent.id() as i32;
    let watcher = watcher_of(&mark);

    let [its_parent, group, session] = stat(watcher)[..] else { panic!("three fields") };
    let [_, our_group, our_session] = stat(own)[..] else { panic!("three fields") };
    assert!(its_parent != i64::from(own), "it is nobody who has to be waited for");
    assert!(group != our_group && session != our_session, "what is sent to the parent's group passes it by");
    let descriptors = || fs::read_dir(format!("/proc/{watcher}/fd")).unwrap().count();
    until("it holds the pipe and nothing else", || descriptors() == 1);
    let pid = Pid::from_raw(watcher).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::PIPE] {
        kill_process(pid, signal).unwrap();
    }
    // The parent, the watcher, what was left alone, two shells, three sleeps.
    until("all run", || marked(&mark).len() == 8);
    assert!(!Path::new(&told).exists());

    // As a terminal, a supervisor or an administrator does it.
    kill_process_group(Pid::from_raw(own).unwrap(), Signal::KILL).unwrap();
    parent.wait().unwrap();
    until("all are gone but what was left alone", || marked(&mark).iter().all(|(number, _)| *number == left));
    assert_eq!(marked(&mark).len(), 1);
    assert_eq!(fs::read_to_string(&told).unwrap(), "told\n", "SIGTERM came first");
    kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
    fs::remove_dir_all(Path::new(&told).parent().unwrap()).unwrap();
}

fn the_watcher_ends() {
    let mark = mark();
    let (mut parent, mut output) = parent("programs", &mark);
    let (_, left): (String, i32) = (line(&mut output), line(&mut output).parse().unwrap());
    watcher_of(&mark);
    drop(parent.stdin.take());
    assert!(parent.wait().unwrap().success());
    until("the watcher and the programs are gone", || marked(&mark).iter().all(|(number, _)| *number == left));
    assert_eq!(marked(&mark).len(), 1);
    kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
}

/// A parent that starts programs as fast as it can.
fn storm() {
    const MOST: usize = 400;
    let mut settings = Settings::default();
    settings.watcher = Some(Watcher::start().unwrap());
    println!("started");
    runtime().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let settings = settings.clone();
            tasks.spawn(async move {
                let mut running = Vec::new();
                for _ in 0..MOST / 8 {
                    let mut sleep = shell("");
                    (sleep.program, sleep.arguments) =
                        (c"/bin/sleep".to_owned(), vec![c"sleep".to_owned(), c"1000".to_owned()]);
                    running.push(Process::start(sleep, Input::Nothing, &settings).await.unwrap());
                }
                std::future::pending::<()>().await;
            });
        }
        tasks.join_next().await;
    });
}

fn a_parent_killed_while_it_starts_programs() {
    for round in 0..12 {
        let mark = mark();
        let (mut parent, mut output) = parent("storm", &mark);
        assert_eq!(line(&mut output), "started");
        std::thread::sleep(Duration::from_millis(2 * round));
        parent.kill().unwrap();
        parent.wait().unwrap();
        until("nothing is left", || marked(&mark).is_empty());
    }
}

/// A parent that starts and ends 2,000 programs in every way and then looks at what it has.
fn many() {
    const PROGRAMS: usize = 2_000;
    const AT_ONCE: usize = 16;
    let mut settings = Settings::default();
    settings.watcher = Some(Watcher::start().unwrap());
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(8).enable_all().build().unwrap();
    let echo = |text: &str| {
        let mut command = Command::new(c"/bin/echo".to_owned());
        command.arguments.push(CString::new(text).unwrap());
        command
    };
    runtime.block_on(async {
        // What stays for good, such as /dev/null, is there from the first on.
        let mut first = Process::start(echo(""), Input::Nothing, &settings).await.unwrap();
        first.exited().await.unwrap();
        drop(first);
        let before = (descriptors(), children());
        assert!(before.1.is_empty());
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..AT_ONCE {
            let settings = settings.clone();
            tasks.spawn(async move {
                for number in 0..PROGRAMS / AT_ONCE {
                    let text = format!("{task} {number}");
                    let mut process = Process::start(echo(&text), Input::Nothing, &settings).await.unwrap();
                    match number % 10 {
                        // Left alone at once, or in the middle.
                        0 => drop(process),
                        1 => drop(process.end().await.unwrap()),
                        _ => {
                            let mut output = String::new();
                            process.stdout.take().unwrap().read_to_string(&mut output).await.unwrap();
                            assert!(process.exited().await.unwrap().success());
                            assert_eq!(output, text + "\n");
                        }
                    }
                    let missing = Command::new(c"/no/such/program".to_owned());
                    Process::start(missing, Input::Nothing, &settings).await.unwrap_err();
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        until("no child is left", || children().is_empty());
        until("no descriptor is left", || descriptors() == before.0);
    });
    println!("nothing is left");
    std::io::stdout().flush().unwrap();
}

/// The children of this process, those that wait to be waited for too.
fn children() -> BTreeSet<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let lists = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(|number| number.parse().unwrap()).collect::<Vec<u32>>()).collect()
}

fn two_thousand_programs() {
    let (mut parent, mut output) = parent("many", &mark());
    assert_eq!(line(&mut output), "nothing is left");
    assert!(parent.wait().unwrap().success());
}
