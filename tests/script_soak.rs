//! The script host under ten thousand requests of which many go wrong, under bodies of 1 GiB, and killed: afterwards nothing of it is left.
#![cfg(feature = "cli")]

#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fastcgi_client::{Client, soon};
use gatespan::protocol::fastcgi::Role;
use rustix::process::{Pid, Signal, kill_process};
use support::client::{Client as HttpClient, Upload};
use support::large::{self, Passage};
use support::process::{Scratch, Server, note};
use support::script_scenes::is_alive;
use support::scripts::{self, Host, Pass, Socket};
use support::{Front, pattern};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How many requests are under way at once.
const AT_ONCE: usize = 24;

/// How many requests there are in all.
const REQUESTS: usize = 10_000;

/// By how much the bridge may have grown, in KiB: what its allocator keeps of the worst moment.
const GROWTH: u64 = 12 * 1024;

/// Numbers that are as good as random and the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// What belongs to a process.
#[derive(Debug, PartialEq)]
struct Belongings {
    children: Vec<u32>,
    descriptors: usize,
    /// Those that have no name as well.
    temporary_files: usize,
}

impl Belongings {
    fn of(process: u32, folder: &Path) -> Belongings {
        let mut children = Vec::new();
        for task in fs::read_dir(format!("/proc/{process}/task")).expect("it is running") {
            let list = task.expect("a folder can be read").path().join("children");
            let list = fs::read_to_string(list).unwrap_or_default();
            children.extend(list.split_whitespace().map(|child| child.parse::<u32>().expect("a number")));
        }
        children.sort_unstable();
        let links: Vec<_> = fs::read_dir(format!("/proc/{process}/fd"))
            .expect("it is running")
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .collect();
        let unnamed = links.iter().filter(|link| link.to_string_lossy().ends_with("(deleted)")).count();
        let named = fs::read_dir(folder).expect("the folder is there").count();
        Belongings { children, descriptors: links.len(), temporary_files: named + unnamed }
    }
}

/// The resident memory of a process at this moment, in KiB.
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it is running");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel accounts for memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// One request, of a kind that chance has chosen. Gives the kind and what came of it.
async fn request(socket: &Path, folder: &str, bridge: u32, mut random: Random) -> (&'static str, String) {
    let stream = soon(UnixStream::connect(socket)).await.expect("the bridge accepts connections");
    let mut client = Client::new(stream);
    let chosen = random.below(100);
    let (kind, script, query, path, upload) = match chosen {
        0..50 => ("hello", "hello.cgi", "", "", None),
        50..55 => ("echo", "probe.cgi", "", "/echo", Some(true)),
        55..60 => ("echo without a length", "probe.cgi", "", "/echo", Some(false)),
        60..65 => ("killed before its head", "misbehaving/killed-before.sh", "", "", None),
        65..70 => ("killed in its answer", "misbehaving/killed-after.sh", "", "", None),
        70..74 => ("silent", "misbehaving/silent.sh", "", "", None),
        74..78 => ("unread", "misbehaving/unread.sh", "", "", Some(true)),
        78..82 => ("too late with its head", "misbehaving/sleeps-before.sh", "30", "", None),
        82..86 => ("too late with its body", "misbehaving/sleeps-between.sh", "30", "", None),
        86..92 => ("left at once", "misbehaving/sleeps-before.sh", "30", "", None),
        92..96 => ("left in its answer", "misbehaving/sleeps-between.sh", "30", "", None),
        96..98 => ("left, and takes no notice of TERM", "misbehaving/traps-term.sh", "/dev/null", "", None),
        _ => ("killed from outside", "misbehaving/sleeps-between.sh", "30", "", None),
    };
    let (name, file) = (format!("/cgi-bin/{script}"), format!("{folder}/{script}"));
    let length = 100_000 + random.below(50_000);
    let body: Vec<u8> = if upload.is_some() { pattern::blocks(length).flatten().collect() } else { Vec::new() };
    let length = body.len().to_string();
    let mut params = vec![
        ("REQUEST_METHOD", if upload.is_some() { "POST" } else { "GET" }),
        ("SCRIPT_NAME", &*name),
        ("SCRIPT_FILENAME", &*file),
        ("PATH_INFO", path),
        ("QUERY_STRING", query),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("GATEWAY_INTERFACE", "CGI/1.1"),
    ];
    if upload == Some(true) {
        params.push(("CONTENT_LENGTH", &length));
    }
    let id = client.begin(Role::Responder, false, &params);
    for piece in body.chunks(32_000) {
        client.end.stdin_slice(id, piece);
    }
    client.end.end_stdin(id);
    if kind == "left at once" {
        client.flush().await;
        sleep(Duration::from_millis(random.below(30))).await;
        return (kind, String::new());
    }
    if kind.starts_with("left") || kind == "killed from outside" {
        client.wait_for(id, "\r\n\r\n").await;
        if kind == "killed from outside" {
            // One of those that sleep, whose answers are cut in any case.
            let children = Belongings::of(bridge, Path::new("/proc/self/fd")).children;
            let sleeps = |child: &&u32| {
                let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains("sleeps-between")
            };
            if let Some(victim) = children.iter().find(sleeps) {
                let _ = kill_process(Pid::from_raw(*victim as i32).expect("a process's number"), Signal::KILL);
            }
        }
        return (kind, String::new());
    }
    let answer = client.answer(id).await;
    let text = answer.text();
    let status = text.lines().next().unwrap_or_default().trim_start_matches("Status: ").to_owned();
    let ended = answer.end.is_some();
    let whole = upload.is_none() || script != "probe.cgi" || !ended || answer.body() == body;
    (kind, format!("{}, {}", &status[..status.len().min(3)], if ended && whole { "whole" } else { "cut" }))
}

/// What each kind must come to. A script that is killed from outside may be any.
fn is_expected(kind: &str, came: &str) -> bool {
    match kind {
        "hello" | "echo" | "echo without a length" | "unread" => came == "200, whole",
        "killed before its head" | "silent" => came == "502, whole",
        "killed in its answer" => came == "200, cut",
        "too late with its head" => came == "504, whole" || came == "502, whole",
        "too late with its body" => came == "200, cut",
        _ => true,
    }
}

async fn requests(socket: &Path, folder: &str, bridge: u32, count: usize, seed: u64) -> BTreeMap<String, usize> {
    let (mut tasks, mut came, mut unexpected) = (JoinSet::new(), BTreeMap::new(), Vec::new());
    for number in 0..count {
        if tasks.len() >= AT_ONCE {
            let (kind, text) = tasks.join_next().await.expect("there are some").expect("none panics");
            note_one(&mut came, &mut unexpected, kind, text);
        }
        let (socket, folder) = (socket.to_owned(), folder.to_owned());
        let mut random = Random(seed + number as u64);
        random.below(1);
        tasks.spawn(async move { request(&socket, &folder, bridge, random).await });
    }
    for (kind, text) in tasks.join_all().await {
        note_one(&mut came, &mut unexpected, kind, text);
    }
    assert!(unexpected.is_empty(), "{} of {count} were not as expected: {unexpected:?}", unexpected.len());
    came
}

fn note_one(came: &mut BTreeMap<String, usize>, unexpected: &mut Vec<String>, kind: &'static str, text: String) {
    if !is_expected(kind, &text) {
        unexpected.push(format!("{kind}: {text}"));
    }
    *came.entry(format!("{kind}: {text}")).or_default() += 1;
}

/// The tool with the scripts, behind a Unix socket.
fn start(scratch: &Scratch) -> Server {
    let socket = scratch.path("soak.sock");
    let spool = scratch.path("marks").display().to_string();
    let options = [
        "--head-timeout=400ms",
        "--read-timeout=400ms",
        "--kill-grace=200ms",
        "--spool-memory=4K",
        "--concurrent=64",
        "--queue=1000",
        "--queue-wait=30s",
    ];
    let from = format!("fastcgi:{}", socket.display());
    let mut command = scripts::bridge(&from, &format!("cgi:{}/", scratch.path("www/cgi-bin").display()), &options);
    command.env("TMPDIR", spool).current_dir("/");
    Server::start(scratch, "bridge", command, &[]).ready_at(&socket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_of_which_many_go_wrong_leave_nothing_behind() {
    let scratch = scripts::scratch();
    let bridge = start(&scratch);
    let (socket, folder) = (scratch.path("soak.sock"), scratch.path("www/cgi-bin").display().to_string());
    let begun = Instant::now();
    // What is made once is made by these.
    requests(&socket, &folder, bridge.pid(), 500, 1).await;
    let spool = scratch.path("marks");
    let settled = async |what: &str, wanted: Option<&Belongings>| {
        let start = Instant::now();
        loop {
            let now = Belongings::of(bridge.pid(), &spool);
            let is_settled = match wanted {
                Some(wanted) => now == *wanted,
                // The watcher, if anything.
                None => now.children.len() <= 1 && now.temporary_files == 0,
            };
            if is_settled {
                return now;
            }
            assert!(start.elapsed() < Duration::from_secs(15), "{what}: {now:?} are left, expected {wanted:?}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    settled("after the first requests", None).await;
    // Idle threads end after a while, and connections are closed a moment after their answers.
    sleep(Duration::from_millis(500)).await;
    let before = settled("before", None).await;
    let memory_before = resident(bridge.pid());
    let came = requests(&socket, &folder, bridge.pid(), REQUESTS, 1_000_000).await;
    eprintln!("{came:#?}");
    note("soak", "ten thousand requests", begun);
    settled("after all requests", Some(&before)).await;
    let memory_after = resident(bridge.pid());
    eprintln!("memory: {memory_before} KiB before, {memory_after} KiB after; {before:?}");
    assert!(memory_after < memory_before + GROWTH, "{memory_before} KiB before, {memory_after} KiB after");
    // It still works.
    let came = requests(&socket, &folder, bridge.pid(), 100, 2_000_000).await;
    assert!(came.contains_key("hello: 200, whole"), "{came:?}");
}

/// 1 GiB each way, with the most memory that the bridge has had.
async fn large(front: &Front) {
    let host = front.servers.iter().find(|server| server.name() == "host").expect("it is there");
    let passage = Passage { name: front.name, address: front.address, process: host.pid() };
    passage.up("/cgi-bin/misbehaving/count.sh", Upload::Sized(large::LENGTH)).await;
    passage.down(&format!("/cgi-bin/misbehaving/huge.sh?{}", large::LENGTH)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_each_way_behind_nginx_takes_little_memory() {
    let name = "gatespan/nginx/unix/closed/streamed";
    let host = Host::Gatespan(&[]);
    large(&scripts::nginx(name, host, Socket::Unix, "nginx/scripts_closed.conf", Pass::Streamed)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_each_way_over_http_takes_little_memory() {
    large(&scripts::http("gatespan/http", &[])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_that_is_killed_leaves_no_script_running() {
    let front = scripts::http("gatespan/http", &["--kill-grace=500ms"]);
    let mut clients = Vec::new();
    let mut processes = Vec::new();
    for number in 0..8 {
        let script = if number % 2 == 0 { "forks" } else { "traps-term" };
        let mark = front.scratch.path(&format!("marks/{number}"));
        let mut client = HttpClient::connect(front.address).await.expect("the server accepts connections");
        let target = format!("/cgi-bin/misbehaving/{script}.sh?{}", mark.display());
        let head = client.head("GET", &target, &[], Upload::Nothing).await.expect("a head comes");
        let text = fs::read_to_string(&mark).expect("the script has begun");
        processes.extend(text.lines().map(|line| line.parse::<u32>().expect("a process's number")));
        clients.push((client, head));
    }
    assert_eq!(processes.len(), 4 * 4 + 4);
    assert!(processes.iter().all(|process| is_alive(*process)));
    let bridge = Pid::from_raw(front.servers[0].pid() as i32).expect("a process's number");
    kill_process(bridge, Signal::KILL).expect("the bridge runs");
    let start = Instant::now();
    loop {
        let left: Vec<u32> = processes.iter().copied().filter(|process| is_alive(*process)).collect();
        if left.is_empty() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "{left:?} are left");
        sleep(Duration::from_millis(20)).await;
    }
}
