//! The tool as people start it: a bridge that runs for as long as its test, and requests written by hand.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The time within which whatever a test waits for has to happen.
pub const SOON: Duration = Duration::from_secs(30);

pub const PORT: &str = "http://127.0.0.1:0";

/// A bridge that runs, and is killed with the test.
pub struct Bridge {
    pub child: Child,
    /// Where it says that it serves, after the scheme.
    pub place: String,
    pub log: Log,
}

/// The lines of its standard error so far, and whether there will be more.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<(Vec<String>, bool)>, Condvar)>);

impl Log {
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let writer = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                writer.0.0.lock().unwrap().0.push(line);
                writer.0.1.notify_all();
            }
            writer.0.0.lock().unwrap().1 = true;
            writer.0.1.notify_all();
        });
        log
    }

    /// The first line that holds this, which is waited for.
    pub fn line(&self, part: &str) -> String {
        let (lines, more) = &*self.0;
        let found = |lines: &[String]| lines.iter().find(|line| line.contains(part)).cloned();
        let (lines, _) = more
            .wait_timeout_while(lines.lock().unwrap(), SOON, |(lines, over)| !*over && found(lines).is_none())
            .unwrap();
        found(&lines.0).unwrap_or_else(|| panic!("no line with {part:?} in {:#?}", lines.0))
    }

    /// All lines, once there will be no more.
    pub fn lines(&self) -> Vec<String> {
        let (lines, more) = &*self.0;
        let (lines, _) = more.wait_timeout_while(lines.lock().unwrap(), SOON, |(_, over)| !*over).unwrap();
        lines.0.clone()
    }
}

pub fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatespan"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("RUST_BACKTRACE").env_remove("GATEWAY_INTERFACE").env_remove("FCGI_WEB_SERVER_ADDRS");
    command
}

impl Bridge {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_as("bridge", arguments)
    }

    /// Another command that serves.
    pub fn start_as(command: &str, arguments: &[&str]) -> Self {
        Self::started(tool(&[&[command], arguments].concat()))
    }

    pub fn started(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the tool starts");
        let log = Log::of(child.stderr.take().unwrap());
        let line = log.line("serving ");
        let text = match serde_json::from_str::<serde_json::Value>(&line) {
            Ok(object) => object["message"].as_str().unwrap().to_owned(),
            Err(_) => line,
        };
        let (_, address) = text.rsplit_once(" at ").unwrap();
        let (_, place) = address.split_once(':').unwrap();
        Self { child, place: place.trim_start_matches("//").split('/').next().unwrap().to_owned(), log }
    }

    /// One request over TCP, and what came for it.
    pub fn ask(&self, request: &str) -> String {
        ask(TcpStream::connect(&self.place).expect("it listens"), request)
    }

    pub fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    /// The body of a whole answer with 200.
    pub fn body(&self, path: &str) -> String {
        let answer = self.get(path);
        assert_eq!(status(&answer), 200, "{answer}");
        body(&answer)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is still there");
    }

    pub fn end(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < SOON, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.end(), Some(0), "{:?}", self.log.lines());
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // A second signal ends it at once, and with it the programs that it started: KILL would leave them.
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(3) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn ask(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A cut answer may end in a reset.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

/// The value of a header of an HTTP answer.
pub fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    head.lines()
        .find_map(|line| line.split_once(": ").filter(|(other, _)| other.eq_ignore_ascii_case(name)))
        .map(|(_, value)| value)
}

pub fn body(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return body.into();
    }
    let (mut rest, mut whole) = (body, String::new());
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole += &after[..length];
        rest = after[length..].strip_prefix("\r\n").unwrap_or_default();
    }
    whole
}
