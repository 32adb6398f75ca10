//! The demo's CGI probe, in the web server's place: one process for each request, this program itself. The script's environment is built
//! from the request, nothing is inherited.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::BytesMut;
use gatespan::application::{Errors, Input};
use gatespan::{Application, Body, Environ, Error, StartResponse};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::relay::{Answer, bad_gateway, relay};

/// The variable by which this program knows that it is the demo's script. No request can set it: what comes from a header begins with HTTP_.
pub(crate) const MARKER: &str = "GATESPAN_DEMO_SCRIPT";

/// How much of a script's answer is read at once, in bytes.
const BLOCK: usize = 64 * 1024;

/// How long the last lines of a script's standard error are waited for.
const LOG_LIMIT: Duration = Duration::from_millis(200);

/// Runs this program as a CGI script.
#[derive(Debug, Clone)]
pub(crate) struct CgiProbe {
    program: PathBuf,
    stop: CancellationToken,
}

impl CgiProbe {
    /// When `stop` is cancelled, scripts that run are told with SIGTERM.
    pub(crate) fn new(program: PathBuf, stop: CancellationToken) -> Self {
        Self { program, stop }
    }
}

impl Application for CgiProbe {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let input = environ.take_input();
        // RFC 3875 4.2: without CONTENT_LENGTH there is no body for a script, so one that has no length (chunked) would be lost in silence.
        if environ.get("CONTENT_LENGTH").is_none() && input.remaining() != Some(0) {
            return Err(Error::new("expected a body with a Content-Length, since CGI has no other").with_status(411));
        }
        let variables = environ.variables().process_environment()?;
        let mut child = Command::new(&self.program)
            .env_clear()
            .envs(variables.iter().map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))))
            .env("SCRIPT_FILENAME", &self.program)
            .env(MARKER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is for the demo; it tells its scripts itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(bad_gateway)?;
        let stdin = child.stdin.take();
        let mut log = ScriptLog {
            lines: child.stderr.take().map(|stderr| BufReader::new(stderr).lines()),
            errors: environ.errors(),
        };
        let stop = self.stop.clone();
        relay(&start_response, move |mut answer| async move {
            let ended = tokio::select! {
                ended = receive(&mut child, &mut answer, stop) => ended,
                error = send(stdin, input) => Err(error),
                error = async { log.pass_on().await; std::future::pending().await } => Err(error),
            };
            // What the script said last, which may be why it failed.
            let _ = tokio::time::timeout(LOG_LIMIT, log.pass_on()).await;
            (answer, ended)
        })
        .await
    }
}

/// A script's standard error, which is for the server's log.
struct ScriptLog {
    lines: Option<Lines<BufReader<ChildStderr>>>,
    errors: Errors,
}

impl ScriptLog {
    /// Passes on lines until there are no more. Cancel-safe.
    async fn pass_on(&mut self) {
        let Some(lines) = &mut self.lines else { return };
        while let Ok(Some(line)) = lines.next_line().await {
            self.errors.line(line);
        }
    }
}

/// Sends the request's body. Comes back only with an error: the answer decides when the exchange is over.
async fn send(stdin: Option<ChildStdin>, mut input: Input) -> Error {
    if let Some(mut stdin) = stdin {
        loop {
            match input.chunk().await {
                Ok(Some(piece)) => match stdin.write_all(&piece).await {
                    Ok(()) => {}
                    // A script need not read its input.
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
                    Err(error) => return bad_gateway(error),
                },
                Ok(None) => break,
                Err(error) => return error.into(),
            }
        }
    }
    std::future::pending().await
}

/// Receives the answer, to the end of the process.
async fn receive(child: &mut Child, answer: &mut Answer, stop: CancellationToken) -> Result<(), Error> {
    let Some(mut stdout) = child.stdout.take() else { return Ok(()) };
    let mut told = false;
    loop {
        let mut block = BytesMut::with_capacity(BLOCK);
        tokio::select! {
            len = stdout.read_buf(&mut block) => match len.map_err(bad_gateway)? {
                0 => break,
                _ => answer.receive(block.freeze()).await?,
            },
            () = stop.cancelled(), if !told => {
                told = true;
                if let Some(process) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                    // One that has ended by itself needs no signal.
                    let _ = kill_process(process, Signal::TERM);
                }
            }
        }
    }
    let status = child.wait().await?;
    if !status.success() {
        return Err(Error::new(format!("expected a script that ends well, got {status}")).with_status(502));
    }
    Ok(())
}
