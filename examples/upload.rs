//! Streams an upload to disk and tells the client how far it is, while it is still sending: both directions at once, in bounded memory.
//!
//! Try it: `cargo run --example upload`, then `curl -N -T some-large-file http://127.0.0.1:8080/`. With
//! `-H 'Accept: text/event-stream'` the lines are events. Press Ctrl-C half way: the file is gone.
//!
//! Web servers in front may hold the upload, or the answer, back: for nginx, `fastcgi_request_buffering off` and `fastcgi_buffering off`.

use std::process::ExitCode;

use bytes::Bytes;
use gatespan::application::{Class, Input, class};
use gatespan::{Environ, Error, StartResponse};
use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// How much is received between two lines, in bytes.
const STEP: u64 = 1 << 20;

/// One upload. As a type that is built per request and then iterated, it owns its file, and however the request ends, the
/// file that is not complete goes with it.
struct Upload {
    environ: Environ,
    start_response: StartResponse,
    state: State,
}

#[expect(clippy::large_enum_variant, reason = "there is one per request")]
enum State {
    Begins,
    Receives { input: Input, file: File, path: TempPath, received: u64 },
    Ended,
}

impl Class for Upload {
    fn new(environ: Environ, start_response: StartResponse) -> Self {
        Self { environ, start_response, state: State::Begins }
    }

    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        match self.state {
            State::Begins => Some(self.begin().await),
            State::Receives { .. } => Some(self.receive().await),
            State::Ended => None,
        }
    }
}

impl Upload {
    async fn begin(&mut self) -> Result<Bytes, Error> {
        if !matches!(self.environ.method(), b"POST" | b"PUT") {
            self.state = State::Ended;
            let headers = [("Content-Type", "text/plain; charset=utf-8"), ("Allow", "POST, PUT")];
            self.start_response.start("405 Method Not Allowed", headers)?;
            return Ok("Send a file by POST or PUT.\n".into());
        }
        // The name is the system's choice, never the client's. A dropped `TempPath` removes its file.
        let (file, path) = tempfile::Builder::new().prefix("upload-").tempfile()?.into_parts();
        let input = self.environ.take_input();
        let announced = input.remaining();
        self.state = State::Receives { input, file: File::from_std(file), path, received: 0 };
        let kind = if self.wants_events() { "text/event-stream" } else { "text/plain; charset=utf-8" };
        self.start_response.start("200 OK", [("Content-Type", kind), ("Cache-Control", "no-store")])?;
        Ok(self.line(&match announced {
            Some(bytes) => format!("{bytes} bytes are announced"),
            None => "the length is not announced".into(),
        }))
    }

    /// Receives some of the body, up to the next line of progress or the end.
    async fn receive(&mut self) -> Result<Bytes, Error> {
        let State::Receives { input, file, received, .. } = &mut self.state else { return Ok(Bytes::new()) };
        let next_line = *received + STEP;
        while *received < next_line {
            // An error here, such as a client that leaves, ends the response; what was received is dropped with `self`.
            let Some(piece) = input.chunk().await? else { return self.finish().await };
            file.write_all(&piece).await?;
            *received += piece.len() as u64;
        }
        let received = *received;
        Ok(self.line(&format!("{received} bytes received")))
    }

    async fn finish(&mut self) -> Result<Bytes, Error> {
        let State::Receives { mut file, path, received, .. } = std::mem::replace(&mut self.state, State::Ended) else {
            return Ok(Bytes::new());
        };
        file.flush().await?;
        // Complete: from here on the file stays.
        let path = path.keep()?;
        Ok(self.line(&format!("done: {received} bytes are in {}", path.display())))
    }

    fn wants_events(&self) -> bool {
        self.environ.header("Accept").is_some_and(|accept| accept.starts_with(b"text/event-stream"))
    }

    fn line(&self, text: &str) -> Bytes {
        if self.wants_events() { format!("data: {text}\n\n").into() } else { format!("{text}\n").into() }
    }
}

fn main() -> ExitCode {
    gatespan::run(class::<Upload>())
}
