//! A connection whose bytes are watched as they pass, whichever client they belong to: records for `-v`, and times.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use gatespan::protocol::fastcgi::Header;
use gatespan::recording::{ConnectionId, Describer, Direction, Entry, Passed, Records, Seen, What};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::console::Console;

/// A stream that tells what passes.
pub(super) struct Watched<S> {
    stream: S,
    watch: Arc<Watch>,
}

/// What was seen of one connection so far.
pub(super) struct Watch {
    console: Arc<Console>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Nothing where nobody looks.
    records: Records,
    describer: Describer,
    first_byte: Option<Duration>,
    received: u64,
}

/// How much of a record's content `-vv` shows.
const MOST_SHOWN: usize = 4096;

/// How many bytes of it stand on a line.
const LINE: usize = 64;

impl Watch {
    pub(super) fn new(console: Arc<Console>) -> Arc<Self> {
        Arc::new(Self { console, state: Mutex::default() })
    }

    pub(super) fn over<S>(self: &Arc<Self>, stream: S) -> Watched<S> {
        Watched { stream, watch: self.clone() }
    }

    /// When the first byte came.
    pub(super) fn first_byte(&self) -> Option<Duration> {
        self.state().first_byte
    }

    /// How many bytes came.
    pub(super) fn received(&self) -> u64 {
        self.state().received
    }

    /// The connection is over: what of a record was begun is shown.
    pub(super) fn end(&self) {
        if self.console.verbose() > 0 {
            let mut state = self.state();
            state.records.end();
            state.show(&self.console);
        }
    }

    fn saw(&self, direction: Direction, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.state();
        if direction == Direction::ToWebServer {
            state.received += bytes.len() as u64;
            state.first_byte.get_or_insert_with(|| self.console.elapsed());
        }
        if self.console.verbose() > 0 {
            let what = What::Bytes { direction, bytes: Bytes::copy_from_slice(bytes) };
            state.records.receive(Seen { offset: 0, time: None, connection: ConnectionId(1), what });
            state.show(&self.console);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn show(&mut self, console: &Console) {
        while let Some(entry) = self.records.next() {
            let mark = match entry.passed.direction() {
                Some(Direction::ToApplication) => '>',
                Some(Direction::ToWebServer) => '<',
                None => '*',
            };
            let meaning = self.describer.describe(&entry);
            match &entry.passed {
                Passed::Record { record, .. } => {
                    let Header { record_type, request_id, content_len, padding_len } = record.header();
                    let record_type = record_type.to_string();
                    console.line(
                        mark,
                        format_args!("{record_type:<17} {request_id} {content_len:>5}+{padding_len} {meaning}"),
                    );
                }
                _ => console.line(mark, meaning),
            }
            if console.verbose() > 1 {
                show_content(console, mark, &entry);
            }
        }
    }
}

/// The content, as text with what is none escaped.
fn show_content(console: &Console, mark: char, entry: &Entry) {
    let content = match &entry.passed {
        Passed::Record { record, .. } => record.content(),
        passed => passed.bytes(),
    };
    for line in content[..content.len().min(MOST_SHOWN)].chunks(LINE) {
        console.further_line(mark, format_args!("  {}", line.escape_ascii()));
    }
    if content.len() > MOST_SHOWN {
        console.further_line(mark, format_args!("  … and {} more bytes", content.len() - MOST_SHOWN));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = Pin::into_inner(self);
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.watch.saw(Direction::ToWebServer, &buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = Pin::into_inner(self);
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.watch.saw(Direction::ToApplication, &bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut Pin::into_inner(self).stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut Pin::into_inner(self).stream).poll_shutdown(cx)
    }
}
