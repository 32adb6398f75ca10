//! Several requests at once on one connection, for servers that say that they take them (FastCGI 3.3 and 4.1).
//!
//! To the forwarder nothing changes: what [`Multiplexed`] gives it is a connection for one request after the other. Behind it a task passes
//! records on between these and the one connection that they share, with other request ids.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use super::connect::Connect;
use super::connection::Io;
use crate::protocol::fastcgi::web_server_end::{Event, Settings};
use crate::protocol::fastcgi::{
    BeginRequest, DecodeError, HEADER_LEN, Header, MPXS_CONNS, RecordType, RequestId, WebServerEnd, put_record,
};

/// A server whose connections are shared by several requests, if it says that it takes that.
///
/// It is asked by GET_VALUES, on a connection of its own, since some servers close one on that. One that does not say yes gets a connection
/// for each request.
///
/// FastCGI has no flow control for each request: a client that takes its answer slowly holds up the others on its connection, once 256 KiB wait for
/// it. That is why it is for those who ask for it.
pub struct Multiplexed<C: Connect> {
    inner: C,
    /// How many requests share a connection at most.
    limit: u16,
    state: Mutex<State>,
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// What the server said, and when.
    answer: Option<(bool, Instant)>,
    shared: Vec<Shared>,
}

/// A shared connection, to the task that owns it.
struct Shared {
    /// The channel has room for as many lines as may be open, so that sending never waits.
    lines: mpsc::Sender<DuplexStream>,
    open: Arc<()>,
}

impl Shared {
    fn line<S>(&self) -> Option<Line<S>> {
        let (ours, theirs) = tokio::io::duplex(READ_LEN);
        self.lines.try_send(theirs).ok()?;
        Some(Line { kind: Kind::Shared(ours), _open: Some(self.open.clone()) })
    }
}

/// How long a server may take to say whether it multiplexes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long what it said is believed.
const BELIEVED_FOR: Duration = Duration::from_secs(60);
/// How much waits on one line, or for the server, before nothing more is read for it.
const WINDOW: usize = 256 * 1024;
/// How much is read at once.
const READ_LEN: usize = 64 * 1024;

impl<C: Connect> Multiplexed<C> {
    /// Connections to a server, each shared by at most `limit` requests; at least one.
    pub fn new(inner: C, limit: u16) -> Self {
        Self { inner, limit: limit.max(1), state: Mutex::default(), connecting: tokio::sync::Mutex::default() }
    }

    async fn is_multiplexing(&self) -> io::Result<bool> {
        let known = self.state().answer;
        if let Some((answer, at)) = known
            && at.elapsed() < BELIEVED_FOR
        {
            return Ok(answer);
        }
        let stream = self.inner.connect().await?;
        // Whatever goes wrong here is a server that does not multiplex.
        let answer = matches!(timeout(PROBE_TIMEOUT, probe(stream)).await, Ok(Ok(true)));
        self.state().answer = Some((answer, Instant::now()));
        Ok(answer)
    }

    /// A line on a connection that has room for one, if there is such.
    fn line(&self) -> Option<Line<C::Stream>> {
        let mut state = self.state();
        state.shared.retain(|shared| !shared.lines.is_closed());
        // One of the handles is the list's own.
        let shared = state.shared.iter().find(|shared| Arc::strong_count(&shared.open) <= self.limit.into())?;
        shared.line()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// FastCGI 4.1.
async fn probe(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<bool> {
    let mut end = WebServerEnd::new(Settings::default());
    end.get_values([MPXS_CONNS]).map_err(io::Error::other)?;
    stream.write_all_buf(end.output()).await?;
    loop {
        match end.next_event().map_err(io::Error::other)? {
            Some(Event::Values(values)) => {
                return Ok(values.iter().any(|(name, value)| name == MPXS_CONNS.as_bytes() && value == b"1"));
            }
            Some(Event::UnknownType(_)) => return Ok(false),
            Some(_) => {}
            None if stream.read_buf(end.receive_buffer()).await? == 0 => return Ok(false),
            None => {}
        }
    }
}

impl<C: Connect> Connect for Multiplexed<C> {
    type Stream = Line<C::Stream>;

    async fn connect(&self) -> io::Result<Self::Stream> {
        if let Some(line) = self.line() {
            return Ok(line);
        }
        // Of those that come at the same time one asks the server and connects, and the others find what it made.
        let connecting = self.connecting.lock().await;
        if let Some(line) = self.line() {
            return Ok(line);
        }
        if !self.is_multiplexing().await? {
            drop(connecting);
            return Ok(Line { kind: Kind::Own(self.inner.connect().await?), _open: None });
        }
        let stream = self.inner.connect().await?;
        // There is room for as many lines as may be open, so that handing one over never waits.
        let (lines, new_lines) = mpsc::channel(self.limit.into());
        let shared = Shared { lines, open: Arc::default() };
        let line = shared.line().ok_or_else(|| io::Error::other("a new connection has room for a line"))?;
        let switch = Switch {
            stream,
            new_lines,
            lines: Vec::new(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            limit: self.limit,
            retired: Vec::new(),
            has_ended: false,
        };
        self.state().shared.push(shared);
        tokio::spawn(switch.run());
        Ok(line)
    }
}

/// What a request has instead of a connection of its own, or that.
#[derive(Debug)]
pub struct Line<S> {
    kind: Kind<S>,
    /// Counts the lines of a shared connection.
    _open: Option<Arc<()>>,
}

#[derive(Debug)]
enum Kind<S> {
    Own(S),
    Shared(DuplexStream),
}

/// The task of a shared connection.
struct Switch<S> {
    stream: S,
    new_lines: mpsc::Receiver<DuplexStream>,
    lines: Vec<Open>,
    input: BytesMut,
    output: BytesMut,
    limit: u16,
    /// Ids of requests that were given up: in use until the server has ended them too.
    retired: Vec<RequestId>,
    /// The server sends nothing more.
    has_ended: bool,
}

/// The switch's side of a line.
struct Open {
    stream: DuplexStream,
    input: BytesMut,
    output: BytesMut,
    /// The id on the shared connection of the request that the line has now.
    id: Option<RequestId>,
    is_gone: bool,
}

/// The only id on a line.
const ONE: RequestId = RequestId(1);

impl<S: Io> Switch<S> {
    async fn run(mut self) {
        if let Err(error) = poll_fn(|cx| self.poll(cx)).await {
            tracing::debug!("a shared connection is over: {error}");
        }
    }

    /// Ready when all that was begun is over, or the connection is.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut progress = self.poll_new_lines(cx);
            for index in 0..self.lines.len() {
                progress |= self.poll_line(index, cx)?;
            }
            progress |= self.poll_write(cx)?;
            progress |= self.poll_read(cx)?;
            for line in &mut self.lines {
                progress |= line.poll_write(cx);
            }
            self.lines.retain(|line| !line.is_gone);
            let has_unwritten = self.lines.iter().any(|line| !line.output.is_empty());
            if self.has_ended && !has_unwritten {
                return Poll::Ready(Ok(()));
            }
            if self.lines.is_empty() {
                // Whoever asks for a line from now on gets a new connection; those who have asked are still served.
                self.new_lines.close();
                if self.new_lines.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    fn poll_new_lines(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready(Some(stream)) = self.new_lines.poll_recv(cx) {
            let (input, output) = (BytesMut::new(), BytesMut::new());
            self.lines.push(Open { stream, input, output, id: None, is_gone: false });
            progress = true;
        }
        progress
    }

    /// Takes records from a line, as long as the server takes them.
    fn poll_line(&mut self, index: usize, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut progress = false;
        while !self.has_ended && self.output.len() < WINDOW {
            match self.take_record(index).map_err(io::Error::other)? {
                Taken::Record => progress = true,
                Taken::NoId => break,
                Taken::Incomplete => {
                    let line = &mut self.lines[index];
                    line.input.reserve(READ_LEN);
                    match poll_read_buf(Pin::new(&mut line.stream), cx, &mut line.input) {
                        Poll::Ready(Ok(1..)) => progress = true,
                        Poll::Ready(_) => {
                            line.is_gone = true;
                            if let Some(id) = line.id.take() {
                                put_record(RecordType::AbortRequest, id, &[], 0, &mut self.output);
                                self.retired.push(id);
                            }
                            return Ok(true);
                        }
                        Poll::Pending => break,
                    }
                }
            }
        }
        Ok(progress)
    }

    /// Passes on a record from a line under its id on the shared connection.
    fn take_record(&mut self, index: usize) -> Result<Taken, DecodeError> {
        let Some(record) = record(&self.lines[index].input)? else { return Ok(Taken::Incomplete) };
        if record.record_type == RecordType::BeginRequest {
            let Some(id) = self.free_id() else { return Ok(Taken::NoId) };
            self.lines[index].id = Some(id);
        }
        let line = &mut self.lines[index];
        // Without an id it belongs to a request that the server has ended.
        if let Some(id) = line.id {
            let start = self.output.len();
            pass_on(&line.input[..record.len], id, &mut self.output);
            match record.record_type {
                // The connection stays, whatever becomes of the line.
                RecordType::BeginRequest if record.len >= HEADER_LEN + 8 => {
                    self.output[start + HEADER_LEN + 2] |= BeginRequest::KEEP_CONN;
                }
                RecordType::AbortRequest => {
                    line.id = None;
                    self.retired.push(id);
                }
                _ => {}
            }
        }
        line.input.advance(record.len);
        Ok(Taken::Record)
    }

    fn free_id(&self) -> Option<RequestId> {
        let is_free =
            |id: &RequestId| !self.retired.contains(id) && self.lines.iter().all(|line| line.id.as_ref() != Some(id));
        (1..=self.limit).map(RequestId).find(is_free)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut progress = false;
        while !self.output.is_empty() && !self.has_ended {
            match poll_write_buf(Pin::new(&mut self.stream), cx, &mut self.output) {
                Poll::Ready(Ok(1..)) => progress = true,
                // What the server sent before it went away is still to be read.
                Poll::Ready(_) => self.output.clear(),
                Poll::Pending => break,
            }
        }
        Ok(progress)
    }

    /// Reads from the server, as long as the lines take what comes.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut progress = false;
        while self.lines.iter().all(|line| line.output.len() < WINDOW) {
            if let Some(record) = record(&self.input).map_err(io::Error::other)? {
                self.give(record);
                progress = true;
                continue;
            }
            if self.has_ended {
                break;
            }
            self.input.reserve(READ_LEN);
            match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input) {
                Poll::Ready(Ok(1..)) => progress = true,
                Poll::Ready(_) => {
                    self.has_ended = true;
                    progress = true;
                }
                Poll::Pending => break,
            }
        }
        Ok(progress)
    }

    /// Passes the record that came first on to the line that it is for. What is for none is dropped.
    fn give(&mut self, record: Record) {
        let is_end = record.record_type == RecordType::EndRequest;
        if let Some(line) = self.lines.iter_mut().find(|line| line.id == Some(record.id)) {
            pass_on(&self.input[..record.len], ONE, &mut line.output);
            if is_end {
                line.id = None;
            }
        } else if is_end {
            self.retired.retain(|id| *id != record.id);
        }
        self.input.advance(record.len);
    }
}

enum Taken {
    Record,
    /// More bytes are needed.
    Incomplete,
    /// As many requests are active as may be.
    NoId,
}

impl Open {
    fn poll_write(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.output.is_empty() {
            match poll_write_buf(Pin::new(&mut self.stream), cx, &mut self.output) {
                Poll::Ready(Ok(1..)) => progress = true,
                // Reading will find out that it is gone.
                Poll::Ready(_) => self.output.clear(),
                Poll::Pending => break,
            }
        }
        progress
    }
}

/// A whole record at the beginning of a buffer.
#[derive(Clone, Copy)]
struct Record {
    record_type: RecordType,
    id: RequestId,
    /// With its header and padding.
    len: usize,
}

fn record(buffer: &[u8]) -> Result<Option<Record>, DecodeError> {
    let Some(header) = Header::decode(buffer)? else { return Ok(None) };
    let len = HEADER_LEN + usize::from(header.content_len) + usize::from(header.padding_len);
    let record = Record { record_type: header.record_type, id: header.request_id, len };
    Ok((buffer.len() >= len).then_some(record))
}

/// Appends a record with another id.
fn pass_on(record: &[u8], id: RequestId, output: &mut BytesMut) {
    let start = output.len();
    output.extend_from_slice(record);
    // FastCGI 3.3: the id is the third and fourth byte of the header.
    output[start + 2..start + 4].copy_from_slice(&id.0.to_be_bytes());
}

macro_rules! delegate {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut Pin::into_inner($self).kind {
            Kind::Own(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Kind::Shared(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
        }
    };
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_read(cx, buf))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Own(stream) => stream.is_write_vectored(),
            Kind::Shared(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_shutdown(cx))
    }
}
