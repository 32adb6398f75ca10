//! `wsgi.input`: the request's body, pulled by the application as it can take it.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, BufRead, Read};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_core::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use super::body::{FileRange, FileReader};

/// The body of a request: a stream of bytes that ends at CONTENT_LENGTH, or where the client ended it.
///
/// Nothing is read ahead of the application beyond a bounded window: one that reads slowly slows its client down. All
/// reading functions are cancel-safe: what was received and not handed out is there for the next call.
#[derive(Default)]
pub struct Input {
    /// The mutex is never locked: it lets a `&Environ` be held across an await, whatever the source.
    source: Option<Mutex<Box<dyn Source>>>,
    /// Received, and not handed out yet.
    ready: Bytes,
    /// How many bytes the source still owes; unknown for a body without a length.
    remaining: Option<u64>,
    received: u64,
}

/// Where a gateway's input comes from.
pub trait Source: Send {
    /// The next piece, of any size over zero; `None` at the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>>;
}

/// A file that is read as a body.
struct FileSource(FileReader);

impl Source for FileSource {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        let block = ready!(self.0.poll_block(cx));
        Poll::Ready(block.map(|block| block.map_err(|error| InputError::Io(io::Error::other(error.to_string())))))
    }
}

/// Why the body of a request could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The client's body ended early.
    #[error("the request body ended after {received} bytes, CONTENT_LENGTH announced {expected}")]
    Incomplete {
        /// What CONTENT_LENGTH said, in bytes.
        expected: u64,
        /// What came, in bytes.
        received: u64,
    },
    /// The body, or a line of it, is longer than the reader allows.
    #[error("the request body is longer than the limit of {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The client is gone.
    #[error("the client left before the request body was complete")]
    Aborted,
    /// The client sent nothing of its body for too long.
    #[error("the client sent nothing of its request body for {after:?}")]
    TimedOut {
        /// How long that was.
        after: std::time::Duration,
    },
    /// What the client sent is no body: chunks that are none, say.
    #[error("the request body is malformed")]
    Malformed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It could not be read.
    #[error("the request body could not be read")]
    Io(#[from] io::Error),
}

impl InputError {
    /// The status that a request with such a body deserves.
    pub fn status(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 413,
            Self::Incomplete { .. } | Self::Aborted | Self::Malformed(_) => 400,
            Self::TimedOut { .. } => 408,
            Self::Io(_) => 500,
        }
    }
}

impl Input {
    /// No body.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A body that is there already.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let ready = bytes.into();
        Self { received: ready.len() as u64, ready, ..Self::default() }
    }

    /// A body that a gateway brings piece by piece. With a length it ends there (PEP 3333: the server simulates the end of file),
    /// and ending before is an error; without one it ends when the source does.
    pub fn from_source(source: impl Source + 'static, length: Option<u64>) -> Self {
        Self { source: Some(Mutex::new(Box::new(source))), remaining: length, ..Self::default() }
    }

    /// Part of a file as a body, read block by block as it is wanted.
    pub fn from_file(range: FileRange) -> Self {
        let len = range.len;
        Self::from_source(FileSource(FileReader::new(range)), Some(len))
    }

    /// The next piece as it came, of any size; `None` at the end. The form that copies nothing.
    ///
    /// # Errors
    ///
    /// When the body ends before its length, the client leaves, or reading fails. Afterwards the body has ended.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, InputError> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Up to `size` bytes, at least one; empty at the end.
    ///
    /// # Errors
    ///
    /// As [`Input::chunk`].
    pub async fn read(&mut self, size: usize) -> Result<Bytes, InputError> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        match poll_fn(|cx| self.poll_fill(cx)).await? {
            true => Ok(self.ready.split_to(size.min(self.ready.len()))),
            false => Ok(Bytes::new()),
        }
    }

    /// All that is left.
    ///
    /// # Errors
    ///
    /// [`InputError::TooLarge`] past `limit` bytes, and as [`Input::chunk`].
    pub async fn read_to_end(&mut self, limit: usize) -> Result<Bytes, InputError> {
        let too_large = InputError::TooLarge { limit: limit as u64 };
        if self.remaining.is_some_and(|remaining| remaining + self.ready.len() as u64 > limit as u64) {
            return Err(too_large);
        }
        let Some(first) = self.chunk().await? else { return Ok(Bytes::new()) };
        if first.len() > limit {
            return Err(too_large);
        }
        let Some(second) = self.chunk().await? else { return Ok(first) };
        let mut all = BytesMut::from(first);
        let mut next = Some(second);
        while let Some(chunk) = next {
            if all.len() + chunk.len() > limit {
                return Err(too_large);
            }
            all.extend_from_slice(&chunk);
            next = self.chunk().await?;
        }
        Ok(all.freeze())
    }

    /// The next line with its line feed; the last one may have none; empty at the end.
    ///
    /// # Errors
    ///
    /// [`InputError::TooLarge`] for a line of more than `limit` bytes, and as [`Input::chunk`].
    pub async fn readline(&mut self, limit: usize) -> Result<Bytes, InputError> {
        // A line over several pieces stays in `line`, which goes back into `ready` if this future is dropped half way.
        let mut line = UnreadOnDrop { input: self, bytes: BytesMut::new() };
        loop {
            let found_at =
                poll_fn(|cx| line.input.poll_fill(cx)).await?.then(|| memchr::memchr(b'\n', &line.input.ready));
            let end = match found_at {
                None => return Ok(line.take().freeze()),
                Some(Some(at)) => at + 1,
                Some(None) => line.input.ready.len(),
            };
            if line.bytes.len() + end > limit {
                return Err(InputError::TooLarge { limit: limit as u64 });
            }
            let piece = line.input.ready.split_to(end);
            if piece.ends_with(b"\n") && line.bytes.is_empty() {
                return Ok(piece);
            }
            line.bytes.extend_from_slice(&piece);
            if piece.ends_with(b"\n") {
                return Ok(line.take().freeze());
            }
        }
    }

    /// The lines one after the other, each of at most `limit` bytes.
    pub fn lines(&mut self, limit: usize) -> Lines<'_> {
        Lines { input: self, limit }
    }

    /// Gives the piece back that [`Input::chunk`] gave last: for those who looked whether there is one.
    #[cfg_attr(not(feature = "upstream-cgi"), allow(dead_code, reason = "the script host looks"))]
    pub(crate) fn unread(&mut self, chunk: Bytes) {
        debug_assert!(self.ready.is_empty(), "a piece is all that was ready");
        self.ready = chunk;
    }

    /// How many bytes are to come, where the request said so.
    pub fn remaining(&self) -> Option<u64> {
        match (&self.source, self.remaining) {
            (None, _) => Some(self.ready.len() as u64),
            (Some(_), remaining) => remaining.map(|remaining| remaining + self.ready.len() as u64),
        }
    }

    /// The same input for code that blocks: `Read`, `BufRead` and with it `lines()`. Only for threads that may block, such as those of
    /// [`blocking`](super::blocking()).
    pub fn blocking(&mut self) -> BlockingInput<'_> {
        BlockingInput { input: self }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, InputError>> {
        if !ready!(self.poll_fill(cx))? {
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(Ok(Some(std::mem::take(&mut self.ready))))
    }

    /// Makes `ready` hold something; false at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, InputError>> {
        while self.ready.is_empty() {
            let Some(source) = self.source.as_mut() else { return Poll::Ready(Ok(false)) };
            if self.remaining == Some(0) {
                self.source = None;
                continue;
            }
            let source = source.get_mut().unwrap_or_else(PoisonError::into_inner);
            match ready!(source.poll_chunk(cx)) {
                Some(Ok(mut chunk)) => {
                    if let Some(remaining) = &mut self.remaining {
                        chunk.truncate(usize::try_from(*remaining).unwrap_or(usize::MAX));
                        *remaining -= chunk.len() as u64;
                    }
                    self.received += chunk.len() as u64;
                    self.ready = chunk;
                }
                Some(Err(error)) => return Poll::Ready(Err(self.fail(error))),
                None => match self.remaining {
                    Some(remaining) => {
                        let received = self.received;
                        let error = InputError::Incomplete { expected: received + remaining, received };
                        return Poll::Ready(Err(self.fail(error)));
                    }
                    None => self.source = None,
                },
            }
        }
        Poll::Ready(Ok(true))
    }

    fn fail(&mut self, error: InputError) -> InputError {
        self.source = None;
        error
    }
}

/// See [`Input::lines`].
pub struct Lines<'a> {
    input: &'a mut Input,
    limit: usize,
}

impl Lines<'_> {
    /// The next line with its line feed; `None` at the end.
    ///
    /// # Errors
    ///
    /// As [`Input::readline`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, InputError> {
        let line = self.input.readline(self.limit).await?;
        Ok((!line.is_empty()).then_some(line))
    }
}

/// Gives the beginning of a line back when `readline` is cancelled before its end came.
struct UnreadOnDrop<'a> {
    input: &'a mut Input,
    bytes: BytesMut,
}

impl UnreadOnDrop<'_> {
    fn take(&mut self) -> BytesMut {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for UnreadOnDrop<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.bytes.extend_from_slice(&self.input.ready);
            self.input.ready = self.take().freeze();
        }
    }
}

impl Stream for Input {
    type Item = Result<Bytes, InputError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_chunk(cx).map(Result::transpose)
    }
}

impl AsyncRead for Input {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if ready!(self.poll_fill(cx)).map_err(io::Error::other)? {
            let len = self.ready.len().min(buf.remaining());
            buf.put_slice(&self.ready[..len]);
            self.ready.advance(len);
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("received", &self.received).field("remaining", &self.remaining()).finish()
    }
}

/// The blocking face of [`Input`]; see [`Input::blocking`].
pub struct BlockingInput<'a> {
    input: &'a mut Input,
}

impl Read for BlockingInput<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buf)?;
        self.consume(len);
        Ok(len)
    }
}

impl BufRead for BlockingInput<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        futures_executor::block_on(poll_fn(|cx| self.input.poll_fill(cx))).map_err(io::Error::other)?;
        Ok(&self.input.ready)
    }

    fn consume(&mut self, len: usize) {
        self.input.ready.advance(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pieces(std::vec::IntoIter<&'static str>);

    impl Source for Pieces {
        fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
            Poll::Ready(self.0.next().map(|piece| Ok(Bytes::from(piece))))
        }
    }

    fn input(pieces: &[&'static str], length: Option<u64>) -> Input {
        let pieces: Vec<_> = pieces.to_vec();
        Input::from_source(Pieces(pieces.into_iter()), length)
    }

    #[tokio::test]
    async fn the_end_of_file_is_simulated_at_content_length() {
        let mut input = input(&["hel", "lo, too much"], Some(5));
        assert_eq!(input.remaining(), Some(5));
        assert_eq!(input.read(2).await.unwrap(), "he");
        assert_eq!(input.remaining(), Some(3));
        assert_eq!(input.read_to_end(100).await.unwrap(), "llo");
        assert_eq!(input.read(1).await.unwrap(), "");
        assert_eq!(input.remaining(), Some(0));
    }

    #[tokio::test]
    async fn a_body_that_ends_early_is_an_error_that_gives_both_lengths() {
        let error = input(&["abc"], Some(5)).read_to_end(100).await.unwrap_err();
        assert_eq!(error.to_string(), "the request body ended after 3 bytes, CONTENT_LENGTH announced 5");
    }

    #[tokio::test]
    async fn lines_may_straddle_pieces() {
        let mut input = input(&["one\ntw", "o", "\n\nla", "st"], None);
        let mut lines = input.lines(10);
        for expected in ["one\n", "two\n", "\n", "last"] {
            assert_eq!(lines.next().await.unwrap().unwrap(), expected);
        }
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_line_over_its_limit_is_refused() {
        assert!(matches!(input(&["abc", "def\n"], None).readline(6).await, Err(InputError::TooLarge { limit: 6 })));
        assert_eq!(input(&["abc", "def\n"], None).readline(7).await.unwrap(), "abcdef\n");
    }

    #[tokio::test]
    async fn read_to_end_keeps_its_limit_with_and_without_a_length() {
        assert!(matches!(input(&["abcd"], Some(4)).read_to_end(3).await, Err(InputError::TooLarge { limit: 3 })));
        assert!(matches!(input(&["ab", "cd"], None).read_to_end(3).await, Err(InputError::TooLarge { limit: 3 })));
        assert_eq!(input(&["ab", "c"], None).read_to_end(3).await.unwrap(), "abc");
    }

    #[tokio::test]
    async fn a_cancelled_readline_loses_nothing() {
        struct Stalls(u8);
        impl Source for Stalls {
            fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
                self.0 += 1;
                match self.0 {
                    1 => Poll::Ready(Some(Ok(Bytes::from_static(b"ab")))),
                    2 => Poll::Pending,
                    3 => Poll::Ready(Some(Ok(Bytes::from_static(b"c\n")))),
                    _ => Poll::Ready(None),
                }
            }
        }
        let mut input = Input::from_source(Stalls(0), None);
        assert!(futures_util::poll!(Box::pin(input.readline(100))).is_pending());
        assert_eq!(input.readline(100).await.unwrap(), "abc\n");
    }

    #[test]
    fn the_blocking_face_reads_lines() {
        let mut input = input(&["one\ntw", "o\n"], Some(8));
        let lines: Vec<String> = input.blocking().lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["one", "two"]);
    }
}
