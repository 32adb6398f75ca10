//! What scripts leave behind, however they and their clients misbehave: no process, no descriptor, no file. One test, because it counts for
//! the whole process.
#![cfg(feature = "upstream-cgi")]

#[path = "support/site.rs"]
mod site;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gatespan::application::driver::call;
use gatespan::application::{Environ, InputError};
use gatespan::upstream::cgi::Host;
use site::{Site, get, post, post_slowly, read, request, soon};

/// How many requests are sent, of all kinds one after the other, several at once.
const REQUESTS: usize = 300;

/// How scripts misbehave, or do not.
const SCRIPTS: &[(&str, &str)] = &[
    ("good", "printf 'Content-Type: text/plain\\n\\n'; cat"),
    ("sized", "printf 'Content-Type: text/plain\\nContent-Length: 4\\n\\nsome'"),
    ("silent", "exec sleep 60"),
    ("deaf", "trap '' TERM; printf 'Content-Type: text/plain\\n\\nsome'; while :; do sleep 0.05; done"),
    ("crash", "printf 'Content-Type: text/plain\\n\\nsome'; kill -SEGV $$"),
    ("early", "kill -KILL $$"),
    ("garbage", "head -c 1000 /dev/urandom; exec sleep 60"),
    ("endless", "printf 'Content-Type: text/plain\\n\\n'; exec yes"),
    ("headless", "exec yes 'X: y'"),
    ("works-on", "printf 'Content-Type: text/plain\\n\\nsome'; exec >&- 2>&-; sleep 0.3"),
    ("works-on-for-ever", "printf 'Content-Type: text/plain\\n\\nsome'; exec >&- 2>&-; sleep 60"),
    ("daemon", "printf 'Content-Type: text/plain\\n\\nsome'; sleep 60 &"),
    ("more", "printf 'Content-Type: text/plain\\nContent-Length: 4\\n\\n'; exec yes"),
    ("noisy", "yes >&2 & sleep 0.05; printf 'Content-Type: text/plain\\n\\nsome'; kill $!"),
    ("unread", "exec <&-; printf 'Content-Type: text/plain\\n\\nsome'"),
    ("bodiless", "printf 'Status: 204\\n\\n'; exec yes"),
    ("redirect", "printf 'Location: /a\\n\\n'; exec sleep 60"),
];

#[tokio::test]
async fn nothing_is_left_of_any_request() {
    let site = Site::new();
    for (name, text) in SCRIPTS {
        site.shell(name, text);
    }
    let host = site.host(|config| {
        config.kill_grace = Duration::from_millis(100);
        config.head_timeout = Duration::from_millis(500);
        config.read_timeout = Duration::from_millis(500);
        config.timeout = Some(Duration::from_secs(2));
        config.linger = Duration::from_millis(500);
        config.leftover_grace = Duration::from_millis(50);
        config.kill_leftovers = true;
        config.spool_memory = 1000;
        (config.concurrent, config.queue) = (8, 100);
    });
    // What the first request makes and is kept: the clock's and the standard descriptors.
    soon(read(soon(call(host.clone(), get("/good"))).await.unwrap())).await;
    soon(host.idle()).await;
    soon(async {
        while !children().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let before = descriptors();
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..REQUESTS {
        let (script, _) = SCRIPTS[number % SCRIPTS.len()];
        let host = host.clone();
        tasks.spawn(async move { one(host, &format!("/{script}"), number).await });
        if tasks.len() >= 16 {
            soon(tasks.join_next()).await.unwrap().unwrap();
        }
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap();
    }
    println!("{REQUESTS} requests: {:?}", begun.elapsed());
    soon(host.idle()).await;
    assert_eq!(host.running(), 0);
    assert_eq!(site.spooled_files(), 0);
    // What was left of a group is ended in the background, and so are bodies that were being spooled.
    let begun = Instant::now();
    while !children().is_empty() || descriptors().len() > before.len() {
        assert!(begun.elapsed() < site::SOON, "children {:?}, descriptors {:?}", children(), descriptors());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(descriptors(), before);
    let groups = groups_below(site.path("cgi-bin").to_str().unwrap());
    assert_eq!(groups, Vec::<String>::new());
}

/// A request and what its client makes of it.
async fn one(host: Arc<Host>, target: &str, number: usize) {
    let kind = fastrand::usize(..6);
    let environ = match number % 5 {
        0 => post(target, vec![b'x'; 3000]),
        1 => {
            let (environ, sender) = post_slowly(target, Some(100_000));
            tokio::spawn(async move {
                while sender.send(Ok(Bytes::from_static(&[b'x'; 10_000]))).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            environ
        }
        2 => {
            let (environ, sender) = post_slowly(target, None);
            tokio::spawn(async move {
                for _ in 0..20 {
                    let _ = sender.send(Ok(Bytes::from_static(&[b'x'; 1000]))).await;
                }
                if kind == 0 {
                    let _ = sender.send(Err(InputError::Aborted)).await;
                }
            });
            environ
        }
        3 => request("HEAD", target),
        _ => get(target),
    };
    leave(host, environ, kind).await;
}

async fn leave(host: Arc<Host>, environ: Environ, kind: usize) {
    let pause = Duration::from_millis(fastrand::u64(..60));
    match kind {
        // Leaves before there is a head.
        0 => drop(tokio::time::timeout(pause, call(host, environ)).await),
        // Leaves within the body.
        1 => {
            if let Ok(mut response) = soon(call(host, environ)).await {
                let _ = tokio::time::timeout(pause, response.body.next()).await;
                response.body.close().await;
            }
        }
        // Takes what comes for some time.
        _ => {
            if let Ok(mut response) = soon(call(host, environ)).await {
                let until = tokio::time::Instant::now() + Duration::from_millis(900);
                while let Ok(Some(Ok(_))) = tokio::time::timeout_at(until, response.body.next()).await {}
                response.body.close().await;
            }
        }
    }
}

/// What this process has open, save for what lists it.
fn descriptors() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let mut open: Vec<_> = entries.filter_map(|path| fs::read_link(path).ok()).map(|to| kind_of(&to)).collect();
    open.retain(|to| !to.starts_with("/proc/"));
    open.sort();
    open
}

/// Without the number that tells two pipes apart.
fn kind_of(target: &std::path::Path) -> String {
    let target = target.display().to_string();
    target.split_once(":[").map_or(target.clone(), |(kind, _)| kind.to_owned())
}

/// This process's children, dead ones too.
fn children() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path().join("children"));
    let text: String = tasks.filter_map(|path| fs::read_to_string(path).ok()).collect();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Processes whose command line speaks of that folder: scripts that outlived their requests.
fn groups_below(folder: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let lines = processes.filter_map(|path| fs::read_to_string(path.join("cmdline")).ok());
    lines.filter(|line| line.contains(folder)).collect()
}
