//! The forwarders under bodies of 1 GiB, and under servers that are killed: memory stays small, and no request is lost that could be sent again.
#![cfg(feature = "cli")]

#[path = "support/bridge.rs"]
mod bridge;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bridge::{Bridge, PORT, SOON, status};
use rustix::process::{Pid, Signal, kill_process};
use support::client::Upload;
use support::large::{self, Passage};
use support::process::{Listening, Scratch, Server, free_address};
use support::scripts;

/// The application, and the address to reach it at.
fn application(scratch: &Scratch, is_http: bool) -> (Server, String) {
    let (socket, address) = (scratch.path("app.sock"), free_address());
    match is_http {
        true => (scratch.application(&Listening::Http(address), &[]), format!("http://{address}")),
        false => (scratch.application(&Listening::Unix(socket.clone()), &[]), format!("fastcgi:{}", socket.display())),
    }
}

/// The bridge to it, on a port of its own.
fn over_http(scratch: &Scratch, to: &str) -> (Server, SocketAddr) {
    let address = free_address();
    let command = scripts::bridge(&format!("http://{address}"), to, &[]);
    (Server::start(scratch, "bridge", command, &[]).ready_on(address), address)
}

/// One at a time: each of them keeps the machine busy.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn download() -> String {
    format!("/app/bytes?n={}", large::LENGTH)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_each_way_from_http_to_fastcgi_takes_little_memory() {
    let _turn = TURN.lock().await;
    let scratch = Scratch::new();
    let (_application, to) = application(&scratch, false);
    let (bridge, address) = over_http(&scratch, &to);
    let passage = Passage { name: "http: to fastcgi:", address, process: bridge.pid() };
    passage.up("/app/count", Upload::Sized(large::LENGTH)).await;
    passage.down(&download()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_each_way_from_http_to_http_takes_little_memory() {
    let _turn = TURN.lock().await;
    let scratch = Scratch::new();
    let (_application, to) = application(&scratch, true);
    let (bridge, address) = over_http(&scratch, &to);
    let passage = Passage { name: "http: to http:", address, process: bridge.pid() };
    passage.up("/app/count", Upload::Sized(large::LENGTH)).await;
    passage.down(&download()).await;
}

/// Three servers behind the bridge, and 200 clients that ask without end, each on one connection after the other. One server is killed.
#[test]
fn killing_one_of_three_servers_costs_no_request_whose_head_had_not_been_sent() {
    const CLIENTS: usize = 200;
    for keep_alive in ["on", "off"] {
        let scratch = Scratch::new();
        let mut servers = Vec::new();
        let mut sockets = Vec::new();
        for number in 0..3 {
            let socket = scratch.path(&format!("{number}.sock"));
            servers.push(scratch.application(&Listening::Unix(socket.clone()), &[]));
            sockets.push(socket.display().to_string());
        }
        let addresses: Vec<_> = sockets.iter().map(|socket| format!("fastcgi:{socket}")).collect();
        let options = ["--also", &addresses[1], "--also", &addresses[2], "--keep-alive", keep_alive];
        let bridge = Bridge::start(&[&[PORT, &*addresses[0]], &options[..]].concat());
        let (done, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let ask = || -> Result<(), String> {
            let mut stream = TcpStream::connect(&bridge.place).map_err(|error| error.to_string())?;
            stream.set_read_timeout(Some(SOON)).map_err(|error| error.to_string())?;
            // Some time of it each request is at the application with nothing of its answer sent.
            let request = b"GET /slow?ms=5 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
            stream.write_all(request).map_err(|error| error.to_string())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
            if status(&answer) == 200 && answer.ends_with("\r\n\r\nslow\n") { Ok(()) } else { Err(answer) }
        };
        let failures: Vec<String> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    scope.spawn(|| {
                        while !is_over.load(Ordering::Relaxed) {
                            ask()?;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok::<(), String>(())
                    })
                })
                .collect();
            let all_run =
                |clients: &[std::thread::ScopedJoinHandle<'_, _>]| clients.iter().all(|client| !client.is_finished());
            let wait = |until: usize| {
                while done.load(Ordering::Relaxed) < until && all_run(&clients) {
                    std::thread::sleep(Duration::from_millis(2));
                }
            };
            wait(CLIENTS * 2);
            kill_process(Pid::from_raw(servers[1].pid() as i32).expect("a number"), Signal::KILL).expect("it runs");
            wait(done.load(Ordering::Relaxed) + CLIENTS * 4);
            is_over.store(true, Ordering::Relaxed);
            clients.into_iter().filter_map(|client| client.join().expect("no client panics").err()).collect()
        });
        assert!(failures.is_empty(), "keep-alive {keep_alive}: {} failed, such as {:?}", failures.len(), failures[0]);
        // It was in use, so that there was something to lose.
        bridge.log.line(&format!("is left alone for 500ms server=\"{}\"", sockets[1]));
        bridge.stop();
    }
}
