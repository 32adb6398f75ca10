//! `wsgi.errors`: where an application writes what the server's log should say.

use std::fmt;
use std::io;
use std::sync::Arc;

/// The server's log for one request: FCGI_STDERR behind a FastCGI server, standard error as a CGI script and under HTTP.
///
/// Cheap to clone. Writing never waits and never fails: a log that can't keep up loses text and says how much.
#[derive(Clone, Default)]
pub struct Errors {
    log: Option<Arc<dyn Log>>,
}

/// What a gateway offers as the log of a request.
pub trait Log: Send + Sync {
    /// Takes some text, usually whole lines. Must not block for long.
    fn write(&self, text: &[u8]);
}

impl Errors {
    /// A log of the gateway's own.
    pub fn new(log: Arc<dyn Log>) -> Self {
        Self { log: Some(log) }
    }

    /// This process's standard error.
    pub fn stderr() -> Self {
        Self { log: None }
    }

    /// Writes one line.
    pub fn line(&self, line: impl fmt::Display) {
        self.text(format!("{line}\n").as_bytes());
    }

    fn text(&self, text: &[u8]) {
        match &self.log {
            Some(log) => log.write(text),
            // There is no further place that could be told of a standard error that is closed.
            None => drop(io::Write::write_all(&mut io::stderr().lock(), text)),
        }
    }
}

/// PEP 3333 asks for `write`, `writelines` and `flush`: `write!` and `writeln!` work on it.
impl io::Write for Errors {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.log.is_some() { "Errors(gateway)" } else { "Errors(stderr)" })
    }
}
