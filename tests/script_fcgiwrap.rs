//! fcgiwrap with the table of requests that Gatespan's host of scripts has to pass: where the two differ, the table says
//! how and why, and so does docs/fcgiwrap.md.

#[path = "support/fastcgi_client.rs"]
mod fastcgi_client;
mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fastcgi_client::Client;
use gatespan::protocol::fastcgi::{RequestId, Role};
use rustix::process::{Pid, Signal, kill_process_group};
use support::process::program;
use support::script_scenes::is_alive;
use support::scripts::{self, Host, Pass, Socket};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_closed_each_time() {
    let name = "fcgiwrap/nginx/unix/closed/streamed";
    scripts::rows(&scripts::nginx(
        name,
        Host::Fcgiwrap,
        Socket::Unix,
        "nginx/scripts_closed.conf",
        Pass::AnswersStreamed,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_kept_and_buffered() {
    let name = "fcgiwrap/nginx/tcp/kept/buffered";
    scripts::rows(&scripts::nginx(name, Host::Fcgiwrap, Socket::Tcp, "nginx/scripts_kept.conf", Pass::Collected)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_apache() {
    scripts::rows(&scripts::apache("fcgiwrap/apache/unix", Host::Fcgiwrap, Socket::Unix)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_lighttpd() {
    scripts::rows(&scripts::lighttpd("fcgiwrap/lighttpd/streamed", Host::Fcgiwrap, "2")).await;
}

/// How long is waited for what fcgiwrap does not do.
const A_WHILE: Duration = Duration::from_secs(1);

/// Asks for one of the misbehaving scripts, without a web server between.
async fn ask(socket: &Path, script: &Path, query: &str) -> (Client<UnixStream>, RequestId) {
    let mut client = Client::new(UnixStream::connect(socket).await.expect("fcgiwrap accepts connections"));
    let script = script.display().to_string();
    let params = [("REQUEST_METHOD", "GET"), ("SCRIPT_FILENAME", &*script), ("QUERY_STRING", query)];
    let id = client.begin(Role::Responder, false, &params);
    client.end.end_stdin(id);
    client.flush().await;
    (client, id)
}

async fn eventually(what: &str, happened: impl Fn() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}: it has not happened");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_script_is_not_told_that_its_client_has_left() {
    let scratch = scripts::scratch();
    let hosted = Host::Fcgiwrap.start(&scratch, Socket::Unix);
    let mark = scratch.path("marks/left");
    let script = scratch.path("www/cgi-bin/misbehaving/traps-term-before.sh");
    let (client, _) = ask(&hosted.path, &script, &mark.display().to_string()).await;
    let number = || fs::read_to_string(&mark).ok().filter(|text| text.ends_with('\n'));
    eventually("the script runs", || number().is_some()).await;
    drop(client);
    sleep(A_WHILE).await;
    let process = number().and_then(|text| text.trim().parse().ok()).expect("a process's number");
    assert!(is_alive(process), "fcgiwrap has ended it with KILL, as Gatespan does");
}

#[tokio::test]
async fn an_answer_does_not_end_while_a_process_holds_it_open() {
    let scratch = scripts::scratch();
    let hosted = Host::Fcgiwrap.start(&scratch, Socket::Unix);
    let mark = scratch.path("marks/grandchild");
    let script = scratch.path("www/cgi-bin/misbehaving/grandchild.sh");
    let (mut client, id) = ask(&hosted.path, &script, &mark.display().to_string()).await;
    assert!(timeout(A_WHILE, client.answer(id)).await.is_err(), "the answer has ended");
    fs::write(&mark, "").expect("a mark can be made");
    assert!(client.answer(id).await.text().ends_with("answered\n"));
}

#[tokio::test]
async fn there_is_no_option_that_limits_the_time() {
    let output = program("/usr/sbin/fcgiwrap", "fcgiwrap").arg("-h").output().expect("fcgiwrap runs");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let first_words = text.lines().filter_map(|line| line.split_whitespace().next());
    let options: Vec<&str> = first_words.filter(|word| word.starts_with('-')).collect();
    assert_eq!(options, ["-f", "-c", "-s", "-h", "-p"], "{text}");
}

#[tokio::test]
async fn sigterm_leaves_the_processes_of_c() {
    let scratch = scripts::scratch();
    let socket = scratch.path("fcgiwrap.sock");
    let mut command: Command = program("/usr/sbin/fcgiwrap", "fcgiwrap");
    command.args(["-c", "3", "-s", &format!("unix:{}", socket.display())]).process_group(0);
    let mut child = command.spawn().expect("fcgiwrap starts");
    let group = Pid::from_child(&child);
    eventually("its processes are there", || children(child.id()).len() == 3).await;
    let children = children(child.id());
    rustix::process::kill_process(group, Signal::TERM).expect("it is there");
    child.wait().expect("a child can be waited for");
    sleep(A_WHILE).await;
    let left = children.iter().filter(|process| is_alive(**process)).count();
    // They are in its group, whose number is no other's while one of them is there.
    let ended = kill_process_group(group, Signal::KILL);
    assert_eq!((left, ended), (3, Ok(())), "fcgiwrap has ended its processes");
}

/// The processes that another has started.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("a folder can be read").flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number: &u32| {
            let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
            // The name before them is in parentheses and may hold anything: then the state, and the parent.
            let parent_of = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
            parent_of == Some(parent)
        })
        .collect()
}
