//! What an application returns: an iterable of byte strings, pulled by the server.

use std::fmt;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinHandle;

use super::error::Error;
use super::head::Headers;

/// How much of a file or reader becomes one piece, unless told otherwise: 64 KiB.
pub const DEFAULT_BLOCK_SIZE: usize = 64 * 1024;

/// The body of a response.
///
/// It is pulled: the next piece is made only when the one before has gone to the client, save for a bounded window. Strings,
/// `Bytes` and `Vec<u8>` become one by `into()`; the functions below make one from iterators, streams, files and readers.
#[derive(Default)]
pub struct Body {
    content: Content,
    on_close: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Default)]
enum Content {
    #[default]
    Empty,
    Full(Bytes),
    File(FileRange),
    Frames(Pin<Box<dyn Frames>>),
}

/// What a body is underneath: frames, asked for one by one. For bodies that need more than data, such as trailers or a
/// `close` that takes time.
pub trait Frames: Send {
    /// The next frame; `None` at the end. Not called again after `None` or an error.
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>>;

    /// How many bytes are to come, where that is certain: the server makes Content-Length of it.
    fn exact_len(&self) -> Option<u64> {
        None
    }

    /// PEP 3333's `close()`: called on every way out, to its end or a time limit, before the drop. Not called again after it is ready.
    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// One part of a body.
#[derive(Debug)]
#[non_exhaustive]
pub enum Frame {
    /// Bytes. Empty ones are nothing.
    Data(Bytes),
    /// Part of a file, for servers that can send one without reading it.
    File(FileRange),
    /// Send what there is, the head too, before asking for more.
    Flush,
    /// Header fields after the body. HTTP sends them to clients that said they take them (`TE: trailers`); CGI and FastCGI have no place for them.
    Trailers(Headers),
}

/// Part of an open file.
#[derive(Debug, Clone)]
pub struct FileRange {
    /// The file.
    pub file: Arc<File>,
    /// Where the part begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// How much of it is read at once, in bytes.
    pub block_size: usize,
}

/// A piece that an iterator or stream may give: bytes in any shape, or a `Result` of them.
pub trait IntoChunk {
    /// As bytes, or the error that ends the body.
    ///
    /// # Errors
    ///
    /// The iterator's own.
    fn into_chunk(self) -> Result<Bytes, Error>;
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The pieces of an iterator that never blocks for long; each is sent before the next is asked for. One that blocks belongs into [`blocking`](super::blocking()).
    pub fn iter<I>(pieces: I) -> Self
    where
        I: IntoIterator<Item: IntoChunk, IntoIter: Send + 'static>,
    {
        Self::frames(Pieces { pieces: pieces.into_iter(), flush: false })
    }

    /// The pieces of a stream; each is sent when the stream has nothing more ready.
    pub fn stream(pieces: impl Stream<Item: IntoChunk> + Send + 'static) -> Self {
        Self::frames(Streamed { pieces: Box::pin(pieces) })
    }

    /// What a reader brings, up to its end, in pieces of [`DEFAULT_BLOCK_SIZE`].
    pub fn reader(reader: impl AsyncRead + Send + 'static) -> Self {
        Self::frames(Reader { reader: Box::pin(reader), buffer: BytesMut::new() })
    }

    /// A file from where it stands to its end; see also [`Environ::file_wrapper`](super::Environ::file_wrapper).
    ///
    /// # Errors
    ///
    /// When its length or position can't be found out.
    pub fn file(mut file: File) -> io::Result<Self> {
        let offset = io::Seek::stream_position(&mut file)?;
        let len = file.metadata()?.len().saturating_sub(offset);
        Ok(FileRange { file: Arc::new(file), offset, len, block_size: DEFAULT_BLOCK_SIZE }.into())
    }

    /// Frames of one's own.
    pub fn frames(frames: impl Frames + 'static) -> Self {
        Self { content: Content::Frames(Box::pin(frames)), on_close: None }
    }

    /// The same body with something to do once it is over: sent, cut or never begun. Called exactly once.
    #[must_use]
    pub fn on_close(mut self, close: impl FnOnce() + Send + 'static) -> Self {
        let before = self.on_close.take();
        self.on_close = Some(match before {
            None => Box::new(close),
            Some(before) => Box::new(move || {
                before();
                close();
            }),
        });
        self
    }

    /// How many bytes are to come, where that is certain.
    pub fn exact_len(&self) -> Option<u64> {
        match &self.content {
            Content::Empty => Some(0),
            Content::Full(bytes) => Some(bytes.len() as u64),
            Content::File(range) => Some(range.len),
            Content::Frames(frames) => frames.exact_len(),
        }
    }

    /// The next frame; `None` at the end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let frame = match &mut self.content {
            Content::Empty => None,
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.content = Content::Empty;
                Some(Ok(Frame::Data(bytes)))
            }
            Content::File(_) => match std::mem::take(&mut self.content) {
                Content::File(range) => Some(Ok(Frame::File(range))),
                _ => None,
            },
            Content::Frames(frames) => ready!(frames.as_mut().poll_frame(cx)),
        };
        Poll::Ready(frame)
    }

    /// Whether all of it was taken and nothing is to be done as it closes.
    pub(super) fn is_spent(&self) -> bool {
        matches!(self.content, Content::Empty) && self.on_close.is_none()
    }

    /// `close()`. Dropping a body runs [`Body::on_close`] too, but can't wait for frames that close in their own time.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Content::Frames(frames) = &mut self.content {
            ready!(frames.as_mut().poll_close(cx));
        }
        // Dropped here, so that what `on_close` does finds the content gone.
        self.content = Content::Empty;
        if let Some(close) = self.on_close.take() {
            close();
        }
        Poll::Ready(())
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(close) = self.on_close.take() {
            self.content = Content::Empty;
            close();
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("exact_len", &self.exact_len()).finish_non_exhaustive()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { content: Content::Full(bytes), on_close: None }
    }
}

impl From<FileRange> for Body {
    fn from(range: FileRange) -> Self {
        Self { content: Content::File(range), on_close: None }
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

macro_rules! chunk_from {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Body {
            fn from(bytes: $kind) -> Self {
                Bytes::from(bytes).into()
            }
        }

        impl IntoChunk for $kind {
            fn into_chunk(self) -> Result<Bytes, Error> {
                Ok(self.into())
            }
        }
    )*};
}

chunk_from!(&'static str, &'static [u8], String, Vec<u8>, BytesMut);

impl IntoChunk for Bytes {
    fn into_chunk(self) -> Result<Bytes, Error> {
        Ok(self)
    }
}

impl<T: IntoChunk, E: Into<Error>> IntoChunk for Result<T, E> {
    fn into_chunk(self) -> Result<Bytes, Error> {
        self.map_err(Into::into)?.into_chunk()
    }
}

/// See [`Body::iter`].
struct Pieces<I> {
    pieces: I,
    /// A piece was given and is to be sent before the next is asked for.
    flush: bool,
}

/// The iterator itself is never pinned.
impl<I> Unpin for Pieces<I> {}

impl<I: Iterator<Item: IntoChunk> + Send> Frames for Pieces<I> {
    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let this = Pin::into_inner(self);
        // PEP 3333, "Buffering and Streaming": no piece may wait while the application makes the next one.
        if std::mem::take(&mut this.flush) && this.pieces.size_hint().1 != Some(0) {
            return Poll::Ready(Some(Ok(Frame::Flush)));
        }
        let piece = this.pieces.next().map(|piece| piece.into_chunk().map(Frame::Data));
        this.flush = piece.is_some();
        Poll::Ready(piece)
    }
}

/// See [`Body::stream`].
struct Streamed<S> {
    pieces: Pin<Box<S>>,
}

impl<S: Stream<Item: IntoChunk> + Send> Frames for Streamed<S> {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        self.pieces.as_mut().poll_next(cx).map(|piece| piece.map(|piece| piece.into_chunk().map(Frame::Data)))
    }
}

/// See [`Body::reader`].
struct Reader<R> {
    reader: Pin<Box<R>>,
    buffer: BytesMut,
}

impl<R: AsyncRead + Send> Frames for Reader<R> {
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let this = Pin::into_inner(self);
        this.buffer.resize(DEFAULT_BLOCK_SIZE, 0);
        let mut room = ReadBuf::new(&mut this.buffer);
        if let Err(error) = ready!(this.reader.as_mut().poll_read(cx, &mut room)) {
            return Poll::Ready(Some(Err(error.into())));
        }
        let len = room.filled().len();
        Poll::Ready((len > 0).then(|| Ok(Frame::Data(this.buffer.split_to(len).freeze()))))
    }
}

/// Reads a [`FileRange`] block by block on a thread that may block, for servers that have no better way of sending it.
pub struct FileReader {
    range: FileRange,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl FileReader {
    /// A reader of that part.
    pub fn new(range: FileRange) -> Self {
        Self { range, reading: None }
    }

    /// How many bytes are still to be read.
    pub(crate) fn remaining(&self) -> u64 {
        self.range.len
    }

    /// The next block; `None` at the end.
    pub fn poll_block(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if self.range.len == 0 {
            return Poll::Ready(None);
        }
        let reading = self.reading.get_or_insert_with(|| {
            let range = self.range.clone();
            tokio::task::spawn_blocking(move || range.read_block())
        });
        let block = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        match block {
            Ok(Ok(block)) => {
                self.range.skip(block.len());
                Poll::Ready(Some(Ok(block)))
            }
            Ok(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }
}

impl FileRange {
    /// Reads its first block, which may block the thread for as long as the disk takes.
    ///
    /// # Errors
    ///
    /// When reading fails, or the file has become shorter than the part.
    pub fn read_block(&self) -> io::Result<Bytes> {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX).min(self.block_size.max(1));
        let mut block = vec![0; len];
        let read = std::os::unix::fs::FileExt::read_at(&*self.file, &mut block, self.offset)?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the file ends at {} with {} bytes still to send", self.offset, self.len),
            ));
        }
        block.truncate(read);
        Ok(block.into())
    }

    /// Takes `len` bytes off its beginning.
    pub fn skip(&mut self, len: usize) {
        self.offset += len as u64;
        self.len = self.len.saturating_sub(len as u64);
    }
}
