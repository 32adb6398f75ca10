//! Programs started, waited for and ended: what they find when they run, and what is left when they are gone.
#![cfg(feature = "upstream-cgi")]

use std::ffi::CString;
use std::fs;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use gatespan::upstream::cgi::process::{Input, Process, Settings};
use gatespan::upstream::cgi::spawn::{Command, Identity, Limits, Step, close_on_exec_all};
use rustix::process::{Pid, Signal, getuid, kill_process, test_kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::RwLock;

/// How long anything may take on a busy machine.
const IN_TIME: Duration = Duration::from_secs(30);

/// The test that has a descriptor which is passed on keeps out those that mind.
static PASSED_ON: RwLock<()> = RwLock::const_new(());

fn text(text: impl AsRef<[u8]>) -> CString {
    CString::new(text.as_ref()).unwrap()
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(text(program));
    command.arguments.extend(arguments.iter().map(text));
    command.environment.push(text("PATH=/usr/bin:/bin"));
    command
}

fn shell(script: &str) -> Command {
    command("/bin/sh", &["-c", script])
}

async fn start(command: Command) -> Process {
    Process::start(command, Input::Nothing, &Settings::default()).await.unwrap()
}

/// Everything that a program writes, and how it ends.
async fn outcome(mut process: Process) -> (ExitStatus, Vec<u8>, Vec<u8>) {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
    let all = async { tokio::join!(stdout.read_to_end(&mut output), stderr.read_to_end(&mut errors)) };
    let (read, read_too) = tokio::time::timeout(IN_TIME, all).await.unwrap();
    read.and(read_too).unwrap();
    (process.exited().await.unwrap(), output, errors)
}

async fn run(command: Command) -> String {
    let (status, output, errors) = outcome(start(command).await).await;
    assert!(status.success() && errors.is_empty(), "{status}: {}", String::from_utf8_lossy(&errors));
    String::from_utf8(output).unwrap()
}

/// The next line that a program writes.
async fn line(output: &mut (impl AsyncBufReadExt + Unpin)) -> String {
    let mut line = String::new();
    tokio::time::timeout(IN_TIME, output.read_line(&mut line)).await.unwrap().unwrap();
    line.trim_end().to_owned()
}

/// Whether a process runs; one that only waits to be waited for does not.
fn is_running(number: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < IN_TIME, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn file(folder: &Path, name: &str, content: &str, mode: u32) -> CString {
    let path = folder.join(name);
    // Written by another process: a program whose file is still open for writing, in a child of another test too, can't
    // be executed.
    let mut writer = std::process::Command::new("/usr/bin/tee");
    let mut writer =
        writer.arg(&path).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    writer.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    text(path.as_os_str().as_bytes())
}

#[tokio::test]
async fn a_program_that_is_just_being_written_is_tried_again_for_a_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    fs::write(&path, "#!/bin/sh\necho written\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let program = Command::new(text(path.as_os_str().as_bytes()));

    let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let busy = Process::start(program.clone(), Input::Nothing, &Settings::default()).await.unwrap_err();
    assert_eq!((busy.step, busy.source.kind()), (Step::Exec, std::io::ErrorKind::ExecutableFileBusy));

    // On a busy machine the writer may be late, but not each time.
    let mut writer = Some(writer);
    for _ in 0..20 {
        let writer = writer.take().unwrap_or_else(|| fs::OpenOptions::new().append(true).open(&path).unwrap());
        let written = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(3));
            drop(writer);
        });
        let started = Process::start(program.clone(), Input::Nothing, &Settings::default()).await;
        written.join().unwrap();
        if let Ok(process) = started {
            assert_eq!(outcome(process).await.1, b"written\n");
            return;
        }
    }
    panic!("it was never tried again");
}

#[tokio::test]
async fn each_failure_says_at_which_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let changed = |change: &dyn Fn(&mut Command)| {
        let mut command = shell("exit 0");
        change(&mut command);
        command
    };
    let identity = |uid, groups| Some(Identity { uid, gid: 0, groups });
    let not_there = file(path, "no-interpreter", "#!/no/such/interpreter\n", 0o755);
    let not_executable = file(path, "no-mode", "#!/bin/sh\n", 0o644);
    let nothing = file(path, "nothing", "no program\n", 0o755);
    let mut cases = vec![
        ("missing", changed(&|command| command.program = text("/no/such/program")), Step::Exec, libc::ENOENT),
        ("no interpreter", changed(&|command| command.program = not_there.clone()), Step::Exec, libc::ENOENT),
        ("no exec bit", changed(&|command| command.program = not_executable.clone()), Step::Exec, libc::EACCES),
        ("no program", changed(&|command| command.program = nothing.clone()), Step::Exec, libc::ENOEXEC),
        ("a folder", changed(&|command| command.program = text("/usr")), Step::Exec, libc::EACCES),
        ("too long", changed(&|command| command.environment.push(text(vec![b'x'; 1 << 20]))), Step::Exec, libc::E2BIG),
        ("no folder", changed(&|command| command.directory = text("/no/such/folder")), Step::Directory, libc::ENOENT),
        (
            "no folder but a file",
            changed(&|command| command.directory = nothing.clone()),
            Step::Directory,
            libc::ENOTDIR,
        ),
        // These numbers mean "as it is" to the system.
        ("nobody", changed(&|command| command.identity = identity(u32::MAX, vec![])), Step::Identity, libc::EINVAL),
    ];
    if getuid().is_root() {
        let many = changed(&|command| command.identity = identity(0, vec![7; 65_537]));
        cases.push(("many groups", many, Step::Identity, libc::EINVAL));
        let barred = path.join("barred");
        fs::create_dir(&barred).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&barred, fs::Permissions::from_mode(0o700)).unwrap();
        let barred = changed(&|command| {
            command.identity = Some(Identity { uid: 65_534, gid: 65_534, groups: vec![] });
            command.directory = text(barred.as_os_str().as_bytes());
        });
        cases.push(("a folder that is not its user's", barred, Step::Directory, libc::EACCES));
    }
    for (name, command, step, error) in cases {
        let failed = Process::start(command, Input::Nothing, &Settings::default()).await.expect_err(name);
        assert_eq!((failed.step, failed.source.raw_os_error()), (step, Some(error)), "{name}: {failed}");
    }
}

#[tokio::test]
async fn a_message_says_what_was_expected() {
    let failed =
        Process::start(command("/no/such/program", &[]), Input::Nothing, &Settings::default()).await.unwrap_err();
    assert_eq!(
        failed.to_string(),
        "the program could not be executed: expected the program, and the interpreter that its first line or its format \
         names, to be there: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn a_program_has_three_descriptors() {
    let _shared = PASSED_ON.read().await;
    // What the tests were started with is none of the program's.
    close_on_exec_all().unwrap();
    let listed = run(command("/bin/ls", &["-l", "/proc/self/fd"])).await;
    let links: Vec<_> = listed.lines().filter_map(|line| line.split_once(" -> ")).collect();
    let numbers: Vec<_> = links.iter().filter_map(|(before, _)| before.rsplit(' ').next()).collect();
    // The fourth is the folder that it lists.
    assert_eq!(numbers, ["0", "1", "2", "3"], "{listed}");
    assert!(links[0].1 == "/dev/null" && links[3].1.starts_with("/proc/"), "{listed}");
    assert!(links[1].1.starts_with("pipe:") && links[2].1.starts_with("pipe:") && links[1].1 != links[2].1, "{listed}");
}

#[tokio::test]
async fn descriptors_that_were_inherited_are_not_passed_on() {
    // Others would pass this one on until it is marked.
    let _alone = PASSED_ON.write().await;
    let (passed, _other) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::empty()).unwrap();
    let number = passed.as_raw_fd().to_string();
    let has_it = || run(shell(&format!("test -e /proc/self/fd/{number} && echo yes || echo no")));
    assert_eq!(has_it().await, "yes\n");
    close_on_exec_all().unwrap();
    assert_eq!(has_it().await, "no\n");
    // The three of this process stay as they are.
    let flags = rustix::io::fcntl_getfd(std::io::stdout()).unwrap();
    assert!(!flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[tokio::test]
async fn a_program_leads_a_group_of_its_own() {
    let process = start(shell("cat /proc/$$/stat")).await;
    let number = process.id().to_string();
    let (_, output, _) = outcome(process).await;
    let stat = String::from_utf8(output).unwrap();
    let fields: Vec<&str> = stat.split_whitespace().collect();
    assert_eq!((fields[0], fields[4]), (&*number, &*number), "{stat}");
}

#[tokio::test]
async fn limits_are_set_and_stricter_ones_stay() {
    let all = |limits: &str| -> Vec<Vec<String>> {
        let names = ["Max cpu time", "Max address space", "Max open files", "Max processes", "Max file size"];
        let line = |name: &&str| limits.lines().find_map(|line| line.strip_prefix(*name)).unwrap().to_owned();
        names.iter().map(|name| line(name).split_whitespace().take(2).map(str::to_owned).collect()).collect()
    };
    let mut limited = command("/bin/cat", &["/proc/self/limits"]);
    assert_eq!(all(&run(limited.clone()).await), all(&fs::read_to_string("/proc/self/limits").unwrap()));
    limited.limits.cpu_time = Some(100);
    limited.limits.memory = Some(1 << 30);
    limited.limits.open_files = Some(40);
    limited.limits.processes = Some(50);
    limited.limits.file_size = Some(1 << 20);
    let expected = [["100", "101"], ["1073741824"; 2], ["40"; 2], ["50"; 2], ["1048576"; 2]];
    assert_eq!(all(&run(limited.clone()).await), expected);
    // The hard limit of this process on open files is less than that.
    limited.limits = Limits::default();
    limited.limits.open_files = Some(u64::MAX - 1);
    let own = &all(&fs::read_to_string("/proc/self/limits").unwrap())[2][1];
    assert_eq!(&all(&run(limited).await)[2], &[own.clone(), own.clone()]);
}

#[tokio::test]
async fn a_program_past_a_limit_is_told_by_a_signal() {
    let mut limited = shell("while :; do :; done");
    limited.limits.cpu_time = Some(1);
    let (status, ..) = outcome(start(limited).await).await;
    assert_eq!(status.signal(), Some(libc::SIGXCPU));
    let folder = tempfile::tempdir().unwrap();
    let mut limited = command("/bin/dd", &["if=/dev/zero", "of=large", "bs=64k", "count=2"]);
    limited.directory = text(folder.path().as_os_str().as_bytes());
    limited.limits.file_size = Some(65_536);
    let (status, ..) = outcome(start(limited).await).await;
    assert_eq!(status.signal(), Some(libc::SIGXFSZ));
    assert_eq!(fs::metadata(folder.path().join("large")).unwrap().len(), 65_536);
}

#[tokio::test]
async fn a_program_runs_as_another_user() {
    if !getuid().is_root() {
        eprintln!("not run: only root can start programs as another user");
        return;
    }
    let mut other = shell("id -u; id -g; id -G; umask; cat /proc/self/status | grep -E '^(Uid|Gid)'");
    other.identity = Some(Identity { uid: 12_345, gid: 23_456, groups: vec![23_456, 4, 34_567] });
    other.umask = Some(0o027);
    let told = run(other).await;
    let expected =
        "12345\n23456\n23456 4 34567\n0027\nUid:\t12345\t12345\t12345\t12345\nGid:\t23456\t23456\t23456\t23456\n";
    assert_eq!(told, expected);
    // Only the program: all of this process's threads are as they were.
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("\nUid:\t0\t0\t0\t0\n"), "{status}");
    }
}

#[test]
fn users_and_groups_are_looked_up() {
    let field = |database: &str, name: &str, position: usize| -> u32 {
        let listed = fs::read_to_string(database).unwrap();
        let line = listed.lines().find(|line| line.split(':').next() == Some(name)).unwrap();
        line.split(':').nth(position).unwrap().parse().unwrap()
    };
    let daemon = (field("/etc/passwd", "daemon", 2), field("/etc/passwd", "daemon", 3));
    let found = Identity::of_names("daemon", None).unwrap();
    assert_eq!((found.uid, found.gid), daemon);
    assert!(found.groups.contains(&daemon.1));
    let adm = field("/etc/group", "adm", 2);
    let found = Identity::of_names("daemon", Some("adm")).unwrap();
    assert_eq!((found.uid, found.gid, found.groups.contains(&adm)), (daemon.0, adm, true));
    assert_eq!(Identity::of_names(&daemon.0.to_string(), None).unwrap(), Identity::of_names("daemon", None).unwrap());
    let unlisted = Identity::of_names("3999999990", Some("3999999991")).unwrap();
    assert_eq!(unlisted, Identity { uid: 3_999_999_990, gid: 3_999_999_991, groups: vec![3_999_999_991] });
    for (user, group) in
        [("no-such-user", None), ("daemon", Some("no-such-group")), ("3999999990", None), ("a\0b", None)]
    {
        Identity::of_names(user, group).unwrap_err();
    }
}

#[tokio::test]
async fn a_program_gets_its_folder_arguments_and_environment_byte_by_byte() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let mut odd = Command::new(text("/bin/sh"));
    odd.arguments =
        [&b"-sh"[..], b"-c", b"cat /proc/$$/cmdline; echo; cat /proc/$$/environ; echo; pwd -P", b"", b"\xff\n *"]
            .map(text)
            .to_vec();
    odd.environment = [&b"PATH=/bin"[..], b"EMPTY=", b"BYTES=\x80\xfe\n=", b"with no equals sign"].map(text).to_vec();
    odd.directory = text(folder.as_os_str().as_bytes());
    let (mut expected, zero) = (Vec::new(), [0]);
    odd.arguments.iter().for_each(|argument| expected.extend([argument.as_bytes(), &zero].concat()));
    expected.push(b'\n');
    odd.environment.iter().for_each(|variable| expected.extend([variable.as_bytes(), &zero].concat()));
    expected.extend([b"\n", folder.as_os_str().as_bytes(), b"\n"].concat());
    let (_, output, _) = outcome(start(odd).await).await;
    assert_eq!(output, expected, "{}", String::from_utf8_lossy(&output));
}

#[tokio::test]
async fn input_is_a_pipe_or_a_file_or_nothing() {
    let settings = Settings::default();
    let mut process = Process::start(command("/bin/cat", &[]), Input::Pipe, &settings).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
    // Both ways at once, and more than the pipes hold.
    let body = vec![b'x'; 1 << 20];
    let mut echoed = Vec::new();
    let write = async {
        stdin.write_all(&body).await.unwrap();
        drop(stdin);
    };
    tokio::join!(write, async { stdout.read_to_end(&mut echoed).await.unwrap() });
    assert_eq!(echoed.len(), body.len());
    assert!(process.exited().await.unwrap().success());

    let mut spooled = tempfile::tempfile().unwrap();
    spooled.write_all(b"skipped, read").unwrap();
    spooled.seek(std::io::SeekFrom::Start(9)).unwrap();
    let process =
        Process::start(command("/bin/cat", &[]), Input::File(OwnedFd::from(spooled)), &settings).await.unwrap();
    assert!(process.stdin.is_none());
    assert_eq!(outcome(process).await.1, b"read");
    assert_eq!(run(command("/bin/cat", &[])).await, "");
}

#[tokio::test]
async fn a_program_that_closes_its_output_and_works_on_is_waited_for() {
    let mut process = start(shell("exec >&- 2>&-; sleep 0.3; exit 7")).await;
    let (mut stdout, mut rest) = (process.stdout.take().unwrap(), Vec::new());
    stdout.read_to_end(&mut rest).await.unwrap();
    // Given up, and asked again.
    tokio::time::timeout(Duration::from_millis(20), process.exited()).await.unwrap_err();
    assert_eq!(process.exited().await.unwrap().code(), Some(7));
    assert_eq!(process.exited().await.unwrap().code(), Some(7));
    assert_eq!(process.end().await.unwrap().code(), Some(7));
}

#[tokio::test]
async fn a_signal_is_a_status() {
    let (status, ..) = outcome(start(shell("kill -ABRT $$")).await).await;
    assert_eq!((status.signal(), status.code()), (Some(libc::SIGABRT), None));
}

#[tokio::test]
async fn a_large_parent_starts_programs() {
    let touched = vec![1_u8; 256 << 20];
    assert_eq!(run(command("/bin/echo", &["hello"])).await, "hello\n");
    assert_eq!(touched[touched.len() - 1], 1);
}

#[tokio::test]
async fn a_program_may_end_by_itself_when_it_is_told_to() {
    let mut process = start(shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done")).await;
    // The shell says there that its `sleep` was ended too, and must not be killed by SIGPIPE over it.
    let _stderr = process.stderr.take();
    let mut stdout = BufReader::new(process.stdout.take().unwrap());
    assert_eq!(line(&mut stdout).await, "ready");
    let ending = process.end();
    assert_eq!(line(&mut stdout).await, "bye");
    assert_eq!(ending.await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn a_program_that_does_not_end_is_killed_after_the_grace() {
    let mut settings = Settings::default();
    settings.grace = Duration::from_millis(300);
    let stubborn = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let mut process = Process::start(stubborn, Input::Nothing, &settings).await.unwrap();
    let mut stdout = BufReader::new(process.stdout.take().unwrap());
    assert_eq!(line(&mut stdout).await, "ready");
    let start = Instant::now();
    assert_eq!(process.end().await.unwrap().signal(), Some(libc::SIGKILL));
    assert!(start.elapsed() >= settings.grace);
}

/// Starts a program whose two descendants are in its group, and returns their numbers.
async fn with_descendants(script: &str, settings: &Settings) -> (Process, [u32; 2]) {
    let mut process = Process::start(shell(script), Input::Nothing, settings).await.unwrap();
    let mut stdout = BufReader::new(process.stdout.take().unwrap());
    let numbers = [line(&mut stdout).await, line(&mut stdout).await].map(|line| line.parse().unwrap());
    assert!(numbers.iter().all(|number| is_running(*number)));
    (process, numbers)
}

const PATIENT: &str = "sleep 1000 & echo $!; (sleep 1000 & echo $!; wait) & wait";

#[tokio::test]
async fn a_group_ends_with_all_its_descendants() {
    let (process, numbers) = with_descendants(PATIENT, &Settings::default()).await;
    let group = Pid::from_raw(process.id() as i32).unwrap();
    assert_eq!(process.end().await.unwrap().signal(), Some(libc::SIGTERM));
    assert!(numbers.iter().all(|number| !is_running(*number)));
    // Nothing waits to be waited for either, once whoever takes in orphans has done so.
    until("the group is gone", || test_kill_process_group(group).is_err()).await;
}

#[tokio::test]
async fn descendants_that_outlast_their_leader_are_killed_after_the_grace() {
    let mut settings = Settings::default();
    settings.grace = Duration::from_millis(400);
    let script = "(trap '' TERM; sleep 1000 & echo $!; sleep 1000 & echo $!; wait) & wait";
    let (process, numbers) = with_descendants(script, &settings).await;
    let start = Instant::now();
    assert_eq!(process.end().await.unwrap().signal(), Some(libc::SIGTERM));
    assert!(start.elapsed() >= settings.grace);
    until("they are killed", || numbers.iter().all(|number| !is_running(*number))).await;
}

#[tokio::test]
async fn dropping_a_running_process_ends_it() {
    let (process, numbers) = with_descendants(PATIENT, &Settings::default()).await;
    let leader = process.id();
    drop(process);
    until("all are gone", || [leader, numbers[0], numbers[1]].iter().all(|number| !is_running(*number))).await;
    until("the leader was waited for", || !Path::new(&format!("/proc/{leader}")).exists()).await;
}

#[test]
fn what_runs_when_the_runtime_ends_is_killed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stubborn = "trap '' TERM; sleep 1000 & echo $!; sleep 1000 & echo $!; wait";
    let (process, numbers) = runtime.block_on(with_descendants(stubborn, &Settings::default()));
    let leader = process.id();
    drop(process.end());
    drop(runtime);
    let start = Instant::now();
    while [leader, numbers[0], numbers[1]].iter().any(|number| is_running(*number)) {
        assert!(start.elapsed() < IN_TIME);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!Path::new(&format!("/proc/{leader}")).exists(), "it was waited for");
}

#[tokio::test]
async fn what_a_program_leaves_behind_is_left_alone_unless_told_otherwise() {
    let leave = "sleep 1000 >/dev/null 2>&1 & echo $!; exec 1>&-; exit 5";
    for kill_leftovers in [false, true] {
        let mut settings = Settings::default();
        settings.kill_leftovers = kill_leftovers;
        let process = Process::start(shell(leave), Input::Nothing, &settings).await.unwrap();
        let (status, output, _) = outcome(process).await;
        assert_eq!(status.code(), Some(5));
        let left: u32 = String::from_utf8(output).unwrap().trim().parse().unwrap();
        if kill_leftovers {
            until("it is ended", || !is_running(left)).await;
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(is_running(left));
            kill_process(Pid::from_raw(left as i32).unwrap(), Signal::KILL).unwrap();
        }
    }
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_any_more_leaves_nothing_running() {
    let folder = tempfile::tempdir().unwrap();
    for delay in [0, 50, 100, 200, 400, 800, 1600] {
        let number = folder.path().join(delay.to_string());
        let script = format!("echo $$ > '{}'; exec sleep 1000", number.display());
        let settings = Settings::default();
        let start = Process::start(shell(&script), Input::Nothing, &settings);
        drop(tokio::time::timeout(Duration::from_micros(delay), start).await);
        // It may have been ended before it wrote its number.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let number = fs::read_to_string(number).unwrap_or_default();
        if let Ok(number) = number.trim().parse() {
            until("it is ended", || !is_running(number)).await;
        }
    }
}

#[test]
fn programs_are_started_from_a_runtime_with_one_thread_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(run(command("/bin/echo", &["hello"]))), "hello\n");
}
