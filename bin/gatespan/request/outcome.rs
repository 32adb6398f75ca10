//! What became of a request: what is known of the answer, what failed, the exit code, and the summary for programs.

use std::fmt;
use std::time::Duration;

use gatespan::protocol::fastcgi::ProtocolStatus;
use gatespan::recording::status_name;
use serde_json::{Value, json};

use super::console::Console;
use super::{Arguments, Client, Times, UsageError};

/// What is known of one try.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) attempts: u32,
    pub(super) status: Option<u16>,
    pub(super) reason: String,
    pub(super) headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the body that came.
    pub(super) bytes: u64,
    /// From the beginning of the try until the connection was made.
    pub(super) connect: Option<Duration>,
    /// Until the first byte came.
    pub(super) first_byte: Option<Duration>,
    pub(super) total: Duration,
    /// FastCGI's application status, or the exit code of a CGI program.
    pub(super) application_status: Option<u32>,
    /// The number of the signal that ended a CGI program.
    pub(super) signal: Option<i32>,
    pub(super) protocol_status: Option<ProtocolStatus>,
    /// What kept the answer from being complete.
    pub(super) failure: Option<Failure>,
}

/// Why there is no complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// What was expected and what came.
    pub(super) message: String,
}

/// Each has an exit code of its own, but those that are this side's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Parts of the command line that can't be together.
    Usage,
    /// A file, this machine, this program.
    Local,
    /// Whoever read the output has seen enough.
    BrokenPipe,
    /// No connection could be made.
    Unreachable,
    /// No answer, or none as the protocol has it.
    Protocol,
    /// The server says that it has no room.
    Overloaded,
    /// A limit was over.
    TimedOut,
    /// With this exit code.
    Signal(u8),
}

impl Kind {
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Local => 1,
            Self::Usage => 2,
            Self::Unreachable => 7,
            Self::Protocol | Self::Overloaded => 8,
            Self::TimedOut => 28,
            Self::Signal(code) => code,
        }
    }

    /// The name in the summary.
    fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Local | Self::BrokenPipe => "local",
            Self::Unreachable => "unreachable",
            Self::Protocol => "protocol",
            Self::Overloaded => "overloaded",
            Self::TimedOut => "timeout",
            Self::Signal(_) => "signal",
        }
    }
}

impl Failure {
    pub(super) fn new(kind: Kind, message: String) -> Self {
        Self { kind, message }
    }

    pub(super) fn local(message: String) -> Self {
        Self::new(Kind::Local, message)
    }

    pub(super) fn usage(error: UsageError) -> Self {
        Self::new(Kind::Usage, error.to_string())
    }

    pub(super) fn protocol(message: impl fmt::Display) -> Self {
        Self::new(Kind::Protocol, message.to_string())
    }
}

impl Outcome {
    pub(super) fn exit_code(&self) -> u8 {
        match (&self.failure, self.status) {
            (Some(failure), _) => failure.kind.exit_code(),
            (None, Some(500..)) => 5,
            (None, Some(400..)) => 4,
            (None, _) if self.application_status.is_some_and(|status| status != 0) || self.signal.is_some() => 9,
            (None, _) => 0,
        }
    }

    /// Whether another try may have a better end: as curl has it.
    pub(super) fn is_transient(&self, times: &Times) -> bool {
        match &self.failure {
            None => matches!(self.status, Some(408 | 429 | 500 | 502 | 503 | 504)),
            Some(failure) => match failure.kind {
                Kind::TimedOut | Kind::Overloaded => true,
                Kind::Unreachable => times.retry_connrefused || times.retry_all_errors,
                Kind::Protocol => times.retry_all_errors,
                Kind::Usage | Kind::Local | Kind::BrokenPipe | Kind::Signal(_) => false,
            },
        }
    }

    /// For how long Retry-After says to stay away, where it says that in seconds.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let (_, value) = self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(b"Retry-After"))?;
        std::str::from_utf8(value).ok()?.trim().parse().ok().map(Duration::from_secs)
    }

    /// In a few words.
    pub(super) fn what_failed(&self) -> Option<String> {
        match (&self.failure, self.status) {
            (Some(failure), _) => Some(failure.message.clone()),
            (None, Some(status @ 400..)) => Some(format!("got {status} {}", self.reason)),
            (None, _) => None,
        }
    }

    /// The object that `--json` prints. docs/request.md says what its members are.
    pub(super) fn summary(&self, arguments: &Arguments, console: &Console, exit_code: u8) -> Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| json!([text(name), text(value)])).collect();
        let (stderr, stderr_truncated) = console.collected();
        let is_fastcgi = !matches!(arguments.to, super::To::Application(_));
        json!({
            "version": 1,
            "to": arguments.to.to_string(),
            "client": match arguments.fastcgi.client {
                Client::Gatespan => "gatespan",
                Client::FastcgiClient => "fastcgi-client",
            },
            "exit_code": exit_code,
            "error": self.failure.as_ref().map(|failure| json!({
                "kind": failure.kind.name(),
                "message": failure.message,
            })),
            "attempts": self.attempts,
            "status": self.status,
            "reason": self.status.map(|_| &self.reason),
            "headers": headers,
            "bytes": self.bytes,
            "times": {
                "connect": seconds(self.connect),
                "first_byte": seconds(self.first_byte),
                "total": self.total.as_secs_f64(),
            },
            "application_status": self.application_status,
            "signal": self.signal,
            "protocol_status": self.protocol_status.filter(|_| is_fastcgi).map(status_name),
            "stderr": text(&stderr),
            "stderr_truncated": stderr_truncated,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kept_the_answer_from_being_complete_goes_before_its_status() {
        let exit_code = |status, application_status, failure: Option<Kind>| {
            let failure = failure.map(|kind| Failure::new(kind, String::new()));
            Outcome { status, application_status, failure, ..Outcome::default() }.exit_code()
        };
        for (status, application_status, failure, code) in [
            (Some(200), Some(0), None, 0),
            (Some(302), None, None, 0),
            (Some(200), Some(1), None, 9),
            (Some(404), Some(1), None, 4),
            (Some(500), Some(1), None, 5),
            (Some(999), None, None, 5),
            (Some(500), None, Some(Kind::Protocol), 8),
            (Some(200), None, Some(Kind::TimedOut), 28),
            (None, None, Some(Kind::Unreachable), 7),
            (None, None, Some(Kind::Overloaded), 8),
            (None, None, Some(Kind::Usage), 2),
            (None, None, Some(Kind::Local), 1),
            (Some(200), None, Some(Kind::BrokenPipe), 0),
        ] {
            assert_eq!(exit_code(status, application_status, failure), code, "{status:?} {failure:?}");
        }
    }
}
