//! Tests whose binary hosts itself: started with a marker in its environment, it is the application; otherwise it runs
//! its tests, each of which starts it again as a web server would.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gatespan::application::{Body, Environ, Error};
use gatespan::{Options, StartResponse};
use tokio_util::sync::CancellationToken;

const MARKER: &str = "GATESPAN_TEST_HOSTED";

pub type Test = (&'static str, fn());

/// What `main` of such a test calls. Understands a filter and `--list`, as the usual harness does.
pub fn main(tests: &[Test]) -> ExitCode {
    if std::env::var_os(MARKER).is_some() {
        let mut options = Options::default();
        options.threads = Some(1);
        #[cfg(feature = "fastcgi")]
        {
            options.fastcgi.shutdown_timeout = Duration::from_secs(20);
            options.fastcgi.shutdown_idle_timeout = Duration::from_millis(50);
        }
        return gatespan::run_with(application, options);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(&**filter));
    let chosen = tests.iter().copied().filter(|(name, _)| chosen(name));
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let running: Vec<_> = chosen
        .map(|(name, test)| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(test).expect("a thread can be started");
            (name, thread)
        })
        .collect();
    let mut failed = 0;
    let count = running.len();
    for (name, test) in running {
        let outcome = if test.join().is_ok() { "ok" } else { "FAILED" };
        failed += usize::from(outcome != "ok");
        println!("test {name} ... {outcome}");
    }
    println!("\ntest result: {} passed; {failed} failed", count - failed);
    ExitCode::from(u8::from(failed > 0))
}

/// Writes to a file when it is dropped, and whether the token was pulled by then.
struct Mark(String, CancellationToken);

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.0, if self.1.is_cancelled() { "cancelled" } else { "dropped" });
    }
}

/// The application: each of its paths shows one thing.
async fn application(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    let query = String::from_utf8_lossy(environ.query_string()).into_owned();
    let plain = [("Content-Type", "text/plain")];
    match environ.path_info() {
        b"/echo" => {
            start_response.start("200 OK", plain)?;
            Ok(Body::stream(environ.take_input()))
        }
        b"/length" => {
            let body = environ.input().read_to_end(1 << 30).await?;
            start_response.start("200 OK", plain)?;
            Ok(format!("{} bytes", body.len()).into())
        }
        b"/large" => {
            start_response.start("200 OK", plain)?;
            let blocks: usize = query.parse()?;
            Ok(Body::iter((0..blocks).map(|_| Bytes::from_static(&[b'x'; 10_000]))))
        }
        b"/wait" => {
            let mark = Mark(query, environ.cancellation());
            let mut write = start_response.start("200 OK", plain)?;
            write.write("begun\n").await?;
            std::future::pending::<()>().await;
            drop(mark);
            Ok(Body::empty())
        }
        b"/slow" => {
            environ.errors().line("began");
            tokio::time::sleep(Duration::from_millis(600)).await;
            start_response.start("200 OK", plain)?;
            Ok("slow but done".into())
        }
        b"/cut" => {
            let mut write = start_response.start("200 OK", plain)?;
            write.write("some").await?;
            tokio::task::yield_now().await;
            Err(Error::new("the disk is full"))
        }
        b"/threads" => {
            // Waits once, so that whatever waiting needs is there.
            tokio::time::sleep(Duration::from_millis(5)).await;
            let threads = std::fs::read_dir("/proc/self/task")?.count();
            start_response.start("200 OK", plain)?;
            Ok(format!("{threads} threads").into())
        }
        _ => {
            start_response.start("200 OK", plain)?;
            Ok(format!("hello by {}\n", environ.server().gateway).into())
        }
    }
}

/// The application as a process, with nothing in its environment but what is given.
pub fn command(variables: &[(&str, &str)]) -> Command {
    prepared(Command::new(this_binary()), variables)
}

/// The same by way of a shell, which runs `script`; `"$0"` is the application.
pub fn shell(script: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(this_binary());
    prepared(command, variables)
}

fn prepared(mut command: Command, variables: &[(&str, &str)]) -> Command {
    command.env_clear().env(MARKER, "1").envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn this_binary() -> std::path::PathBuf {
    std::env::current_exe().expect("this binary's path")
}

/// A process that is killed when the test fails.
pub struct Process(pub Child);

impl Process {
    pub fn start(mut command: Command) -> Self {
        Self(command.spawn().expect("the process starts"))
    }

    /// Waits for its end, but not for ever.
    pub fn end(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "the process does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("it is still there");
    }

    /// The next line of its standard error.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let stderr = self.0.stderr.as_mut().expect("a pipe");
        // One byte at a time, so that nothing is lost between two calls.
        BufReader::with_capacity(1, stderr).read_line(&mut line).expect("it can be read");
        line
    }

    /// All that is left of its standard output.
    pub fn output(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        self.0.stdout.as_mut().expect("a pipe").read_to_end(&mut output).expect("it can be read");
        output
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether O_NONBLOCK is set on the open file, which whoever shares it would see.
pub fn is_nonblocking(descriptor: &OwnedFd) -> bool {
    rustix::fs::fcntl_getfl(descriptor).expect("an open descriptor").contains(rustix::fs::OFlags::NONBLOCK)
}
