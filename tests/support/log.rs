//! What was logged, for tests that look for a line.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io;
use std::sync::{Arc, Mutex, Once, OnceLock};

use gatespan::application::{Errors as Sink, Log};

/// All lines that the process logs from the first call on.
pub fn capture() -> Captured {
    static LINES: OnceLock<Captured> = OnceLock::new();
    static INSTALLED: Once = Once::new();
    let captured = LINES.get_or_init(Captured::default).clone();
    INSTALLED.call_once(|| {
        let writer = captured.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
    });
    captured
}

#[derive(Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// The lines about one request.
    pub fn of(&self, request_id: &str) -> Vec<String> {
        let text = self.0.lock().unwrap();
        let needle = format!("request_id=\"{request_id}\"");
        String::from_utf8_lossy(&text).lines().filter(|line| line.contains(&needle)).map(str::to_owned).collect()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A request's own log.
#[derive(Clone, Default)]
pub struct Errors(Arc<Lines>);

#[derive(Default)]
struct Lines(Mutex<Vec<u8>>);

impl Log for Lines {
    fn write(&self, text: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(text);
    }
}

impl Errors {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn errors(&self) -> Sink {
        Sink::new(self.0.clone())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap()).into_owned()
    }
}
