//! Request bodies whose length nobody announced, received whole before they are passed on: in memory first, then in an unlinked
//! temporary file.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use crate::application::{DEFAULT_BLOCK_SIZE, FileRange, FileReader, Input, InputError, Source};

/// A whole request body.
#[derive(Debug)]
pub(crate) enum Spooled {
    /// It fitted into memory.
    Memory(Bytes),
    /// It did not. The file has no name any more, and stands at its beginning.
    File {
        /// The file.
        file: File,
        /// How long it is, in bytes.
        len: u64,
    },
}

/// How much is spooled, and where to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<'a> {
    /// Up to how many bytes stay in memory.
    pub(crate) memory: usize,
    /// From how many bytes on a body is refused.
    pub(crate) max_len: u64,
    /// Where files are made; the system's folder for temporary files without one.
    pub(crate) folder: Option<&'a Path>,
}

/// Why a body could not be spooled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// It could not be received, or was longer than the limit.
    #[error(transparent)]
    Input(#[from] InputError),
    /// It could not be stored.
    #[error("a request body could not be stored in {}", folder.display())]
    Store {
        /// Where to.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How much is collected before it is written to the file, which happens on another thread.
const WRITTEN_AT_ONCE: usize = 256 * 1024;

impl Spooled {
    /// Receives a body to its end.
    ///
    /// Dropped before that, it leaves nothing behind: the file never had a name for longer than it took to take it away.
    ///
    /// # Errors
    ///
    /// See [`SpoolError`]; [`InputError::TooLarge`] for what is over the limit, as soon as that is known.
    pub(crate) async fn receive(input: &mut Input, limits: Limits<'_>) -> Result<Self, SpoolError> {
        let Limits { memory, max_len, folder } = limits;
        let mut len = 0;
        let mut buffer = BytesMut::new();
        let mut file: Option<File> = None;
        while let Some(chunk) = input.chunk().await? {
            len += chunk.len() as u64;
            if len > max_len {
                return Err(InputError::TooLarge { limit: max_len }.into());
            }
            buffer.extend_from_slice(&chunk);
            let room = if file.is_some() { WRITTEN_AT_ONCE } else { memory };
            if buffer.len() > room {
                file = Some(append(file.take(), &mut buffer, folder).await?);
            }
        }
        match file {
            None => Ok(Self::Memory(buffer.freeze())),
            Some(file) => {
                let mut file = append(Some(file), &mut buffer, folder).await?;
                file.rewind().map_err(|source| store_error(folder, source))?;
                Ok(Self::File { file, len })
            }
        }
    }

    /// How long it is, in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// The body to be read again, with its length.
    pub(crate) fn into_input(self) -> Input {
        match self {
            Self::Memory(bytes) => Input::from_bytes(bytes),
            Self::File { file, len } => {
                let range = FileRange { file: Arc::new(file), offset: 0, len, block_size: DEFAULT_BLOCK_SIZE };
                Input::from_source(FileSource(FileReader::new(range)), Some(len))
            }
        }
    }
}

/// Writes the buffer to the end of the file, which is made if there is none. On a thread for that: a disk may take its time.
async fn append(file: Option<File>, buffer: &mut BytesMut, folder: Option<&Path>) -> Result<File, SpoolError> {
    let (mut data, owned) = (std::mem::take(buffer), folder.map(Path::to_owned));
    let written = tokio::task::spawn_blocking(move || {
        let mut file = match (file, owned) {
            (Some(file), _) => file,
            (None, Some(folder)) => tempfile::tempfile_in(folder)?,
            (None, None) => tempfile::tempfile()?,
        };
        file.write_all(&data)?;
        data.clear();
        Ok((file, data))
    });
    let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let (file, data) = written.map_err(|source| store_error(folder, source))?;
    *buffer = data;
    Ok(file)
}

fn store_error(folder: Option<&Path>, source: io::Error) -> SpoolError {
    SpoolError::Store { folder: folder.map_or_else(std::env::temp_dir, Path::to_owned), source }
}

/// A file as a request body.
struct FileSource(FileReader);

impl Source for FileSource {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        Poll::Ready(
            ready!(self.0.poll_block(cx))
                .map(|block| block.map_err(|error| InputError::Io(io::Error::other(error.to_string())))),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Read;

    use super::*;

    struct Pieces(VecDeque<Bytes>);

    impl Source for Pieces {
        fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn input(len: usize, piece: usize) -> (Input, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
        let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        (Input::from_source(Pieces(pieces), None), bytes)
    }

    fn limits(folder: &Path) -> Limits<'_> {
        Limits { memory: 1000, max_len: 2_000_000, folder: Some(folder) }
    }

    #[tokio::test]
    async fn a_body_is_spooled_whole_in_memory_or_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for (len, in_memory) in
            [(0, true), (1, true), (1000, true), (1001, false), (300_000, false), (2_000_000, false)]
        {
            for piece in [1 + len / 3, 65_536] {
                let (mut input, bytes) = input(len, piece);
                let spooled = Spooled::receive(&mut input, limits(folder.path())).await.unwrap();
                assert_eq!(spooled.len(), len as u64);
                assert_eq!(matches!(spooled, Spooled::Memory(_)), in_memory, "{len}");
                let mut again = spooled.into_input();
                assert_eq!(again.remaining(), Some(len as u64));
                assert_eq!(again.read_to_end(len).await.unwrap(), bytes);
            }
        }
    }

    #[tokio::test]
    async fn a_file_stands_at_its_beginning_and_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let (mut input, bytes) = input(5000, 100);
        let spooled = Spooled::receive(&mut input, limits(folder.path())).await.unwrap();
        let Spooled::File { mut file, .. } = spooled else { panic!("5000 bytes are more than 1000") };
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, bytes);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_before_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let (mut input, _) = input(2_000_100, 40);
        let error = Spooled::receive(&mut input, limits(folder.path())).await.unwrap_err();
        let SpoolError::Input(error) = error else { panic!("{error}") };
        assert_eq!(error.status(), 413);
        assert_eq!(input.read(1000).await.unwrap().len(), 40, "the rest was left for the gateway to discard");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_named() {
        let (mut input, _) = input(2000, 100);
        let folder = Path::new("/nonexistent/spool");
        let error = Spooled::receive(&mut input, limits(folder)).await.unwrap_err();
        assert_eq!(error.to_string(), "a request body could not be stored in /nonexistent/spool");
    }
}
