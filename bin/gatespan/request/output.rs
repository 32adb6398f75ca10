//! Where the answer goes: standard output or a file, with its head or without, and nothing of a try that is repeated.

use std::fs::File as StdFile;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use gatespan::protocol::cgi::{ResponseHead, Status, allows_body, encode_head};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::console::harmless;
use super::outcome::{Failure, Kind, Outcome};
use super::{OutputOptions, Request};

/// What one try writes.
pub(super) struct Output<'a> {
    options: &'a OutputOptions,
    console: &'a super::Console,
    method: &'a [u8],
    /// Whether the head is all that is asked for.
    head_only: bool,
    /// Whether what deserves another try is not written.
    may_try_again: bool,
    times: &'a super::Times,
    /// Opened with the first byte.
    file: Option<File>,
    /// Whether the body is written.
    takes_body: bool,
    /// What Content-Length says of a body that is to come.
    announced: Option<u64>,
}

impl<'a> Output<'a> {
    pub(super) fn new(request: &'a Request<'_>, may_try_again: bool) -> Self {
        Self {
            options: &request.arguments.output,
            console: &request.console,
            method: &request.message.method,
            head_only: request.arguments.message.head,
            may_try_again,
            times: &request.arguments.times,
            file: None,
            takes_body: false,
            announced: None,
        }
    }

    /// The head of the answer; `raw` are its bytes where they came as CGI has them.
    pub(super) async fn head(
        &mut self,
        head: &ResponseHead,
        raw: Option<&[u8]>,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let (code, reason) = head.status_or_default();
        outcome.status = Some(code);
        outcome.first_byte.get_or_insert_with(|| self.console.elapsed());
        outcome.reason = harmless(reason);
        outcome.headers = head.headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        self.show(code, outcome);
        if code < 200 {
            return Err(Failure::protocol(format_args!("expected a final status, got {code} {}", outcome.reason)));
        }
        let has_body = allows_body(code, self.method);
        self.announced = head.content_length().filter(|_| has_body);
        let is_repeated = self.may_try_again && outcome.is_transient(self.times);
        let fails = self.options.fail && code >= 400;
        let writes = !is_repeated && !self.is_dropped();
        self.takes_body = writes && has_body && !fails && !self.head_only;
        if writes && (self.options.include || self.head_only) {
            match raw {
                Some(raw) => self.write(raw).await?,
                None => {
                    let mut encoded = BytesMut::new();
                    // It was checked where it came from.
                    encode_head(code, reason, head.headers.iter(), &mut encoded).map_err(Failure::protocol)?;
                    self.write(&encoded).await?;
                }
            }
        } else if self.takes_body && self.options.output.is_some() {
            // An empty body is an empty file, and no file of another answer.
            self.open().await?;
        }
        Ok(())
    }

    /// The summary takes standard output for itself.
    fn is_dropped(&self) -> bool {
        self.options.json && self.options.output.as_deref().is_none_or(is_stdout)
    }

    fn show(&self, code: u16, outcome: &Outcome) {
        self.console.line('<', format_args!("head: {code} {}", outcome.reason));
        for (name, value) in &outcome.headers {
            self.console.further_line('<', format_args!("{}: {}", harmless(name), harmless(value)));
        }
    }

    /// A piece of the body.
    pub(super) async fn body(&mut self, data: &Bytes, outcome: &mut Outcome) -> Result<(), Failure> {
        outcome.bytes += data.len() as u64;
        match self.takes_body && !data.is_empty() {
            true => self.write(data).await,
            false => Ok(()),
        }
    }

    /// Whether as much came as was announced. To be asked at the end of the answer.
    pub(super) fn check_length(&self, outcome: &Outcome) -> Result<(), Failure> {
        match self.announced {
            Some(announced) if announced != outcome.bytes => Err(Failure::protocol(format_args!(
                "expected {announced} bytes of body, as Content-Length says, got {}",
                outcome.bytes
            ))),
            _ => Ok(()),
        }
    }

    /// What was written is where it should be.
    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        match &mut self.file {
            Some(file) => {
                let flushed = file.flush().await;
                flushed.map_err(|error| self.failed(&error))
            }
            None => Ok(()),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let file = self.open().await?;
        let mut written = file.write_all(bytes).await;
        if written.is_ok() {
            // Each piece goes on at once: whoever reads may be waiting for it.
            written = file.flush().await;
        }
        written.map_err(|error| self.failed(&error))
    }

    async fn open(&mut self) -> Result<&mut File, Failure> {
        if self.file.is_none() {
            let opened = match self.options.output.as_deref().filter(|path| !is_stdout(path)) {
                Some(path) => File::create(path).await,
                // A descriptor of its own, so that a thread that waits for a reader is in nobody's way.
                None => io::stdout().as_fd().try_clone_to_owned().map(|stdout| StdFile::from(stdout).into()),
            };
            self.file = Some(opened.map_err(|error| self.failed(&error))?);
        }
        self.file.as_mut().ok_or_else(|| Failure::local("expected the output to be open".into()))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        match self.options.output.as_deref().filter(|path| !is_stdout(path)) {
            Some(path) => Failure::local(format!("{}: could not be written: {error}", path.display())),
            None => stdout_failed(error),
        }
    }
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn stdout_failed(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::new(Kind::BrokenPipe, "nobody reads standard output any more".into()),
        _ => Failure::local(format!("standard output could not be written: {error}")),
    }
}

/// To standard output.
pub(super) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| stdout_failed(&error))
}

/// A head that an application gave, as one that came over the wire.
pub(super) fn head_of(head: &gatespan::application::Head) -> ResponseHead {
    let mut reason = BytesMut::new();
    reason.put_slice(head.status.reason());
    ResponseHead {
        status: Some(Status { code: head.status.code(), reason: reason.freeze() }),
        headers: head.headers.iter().collect(),
    }
}
