//! Bodies of any length in a fixed amount of memory: what goes over it lies in one temporary file without a name.
//!
//! This is the one place in the library's part about recordings that touches a file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory, and behind it a temporary file, for many bodies. Clones share both.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    memory_limit: usize,
    memory: usize,
    folder: Option<PathBuf>,
    /// Made when it is needed first.
    file: Option<Arc<File>>,
    /// How many blocks the file has, and which of them nobody uses.
    blocks: u64,
    free: Vec<u64>,
}

/// How much is held in memory unless told otherwise.
pub const DEFAULT_SPOOL_MEMORY: usize = 32 * 1024 * 1024;

/// Bodies are held in blocks of so many bytes.
const BLOCK_LEN: usize = 64 * 1024;

impl Default for Spool {
    fn default() -> Self {
        Self::new(DEFAULT_SPOOL_MEMORY, None)
    }
}

impl Spool {
    /// Up to `memory` bytes of all bodies are held in memory, the rest in a file in `folder`, or where the system has its temporary files.
    pub fn new(memory: usize, folder: Option<PathBuf>) -> Self {
        let shared = Shared { memory_limit: memory, memory: 0, folder, file: None, blocks: 0, free: Vec::new() };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// A body without any bytes yet.
    pub fn body(&self) -> Spooled {
        Spooled { spool: self.clone(), blocks: Vec::new(), len: 0 }
    }

    /// How many bytes of memory the bodies take at this moment.
    pub fn memory(&self) -> usize {
        self.lock().memory
    }

    /// How long the file is, in bytes.
    pub fn file_len(&self) -> u64 {
        self.lock().blocks * BLOCK_LEN as u64
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing that holds the lock can leave it half done.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Whether so many bytes more may be held in memory; they count from here on.
    fn take_memory(&mut self, len: usize) -> bool {
        let fits = self.memory_limit.saturating_sub(self.memory) >= len;
        self.memory += if fits { len } else { 0 };
        fits
    }

    /// A block of the file that nobody else uses.
    fn take_block(&mut self) -> io::Result<(Arc<File>, u64)> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let file = match &self.folder {
                    Some(folder) => tempfile::tempfile_in(folder),
                    None => tempfile::tempfile(),
                }?;
                self.file.insert(Arc::new(file)).clone()
            }
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.blocks += 1;
            self.blocks - 1
        });
        Ok((file, index))
    }
}

/// One body.
#[derive(Debug)]
pub struct Spooled {
    spool: Spool,
    /// All but the last are full.
    blocks: Vec<Block>,
    len: u64,
}

#[derive(Debug)]
enum Block {
    Memory(Vec<u8>),
    File { file: Arc<File>, index: u64 },
}

impl Spooled {
    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds bytes at its end.
    ///
    /// # Errors
    ///
    /// When the temporary file can't be made or written. The body may then have a part of the bytes.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let at = (self.len % BLOCK_LEN as u64) as usize;
            if at == 0 {
                self.blocks.push(Block::Memory(Vec::new()));
            }
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_LEN - at));
            let last = self.blocks.last_mut().expect("a body that ends within a block has this block");
            if let Err(error) = put(last, at, now, &self.spool) {
                // An empty block would be taken for a full one.
                if at == 0
                    && let Some(Block::File { index, .. }) = self.blocks.pop()
                {
                    self.spool.lock().free.push(index);
                }
                return Err(error);
            }
            self.len += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Copies bytes from `offset` on and says how many: as many as there are up to the end of a block, and 0 at the body's end only.
    ///
    /// # Errors
    ///
    /// When the temporary file can't be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let (block, at) = ((offset / BLOCK_LEN as u64) as usize, (offset % BLOCK_LEN as u64) as usize);
        let left = self.len.saturating_sub(offset).min((BLOCK_LEN - at) as u64) as usize;
        let len = buffer.len().min(left);
        let buffer = &mut buffer[..len];
        match self.blocks.get(block) {
            None => Ok(0),
            Some(Block::Memory(bytes)) => {
                buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
                Ok(buffer.len())
            }
            Some(Block::File { file, index }) => {
                file.read_exact_at(buffer, index * BLOCK_LEN as u64 + at as u64)?;
                Ok(buffer.len())
            }
        }
    }

    /// Reads it from its beginning.
    pub fn reader(&self) -> SpooledReader<'_> {
        self.reader_from(0)
    }

    /// Reads it from there on.
    pub fn reader_from(&self, offset: u64) -> SpooledReader<'_> {
        SpooledReader { body: self, offset }
    }

    /// Its first bytes, at most so many.
    ///
    /// # Errors
    ///
    /// When the temporary file can't be read.
    pub fn first(&self, limit: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader().take(limit as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Writes bytes into a block, at its end: into memory as long as there is some, and else the block moves to the file.
fn put(block: &mut Block, at: usize, bytes: &[u8], spool: &Spool) -> io::Result<()> {
    if let Block::Memory(held) = block {
        let (needed, before) = (at + bytes.len(), held.capacity());
        let grown = needed.max(2 * before).clamp(MIN_CAPACITY, BLOCK_LEN);
        if needed <= before {
            held.extend_from_slice(bytes);
            return Ok(());
        }
        if spool.lock().take_memory(grown - before) {
            held.reserve_exact(grown - held.len());
            // It may be more than was asked for.
            spool.lock().memory += held.capacity().saturating_sub(grown);
            held.extend_from_slice(bytes);
            return Ok(());
        }
        let (file, index) = spool.lock().take_block()?;
        let moved = file.write_all_at(held, index * BLOCK_LEN as u64);
        if let Err(error) = moved {
            spool.lock().free.push(index);
            return Err(error);
        }
        spool.lock().memory -= held.capacity();
        *block = Block::File { file, index };
    }
    match block {
        Block::File { file, index } => file.write_all_at(bytes, *index * BLOCK_LEN as u64 + at as u64),
        Block::Memory(_) => unreachable!("it was moved or written above"),
    }
}

/// The least memory of a block, in bytes.
const MIN_CAPACITY: usize = 256;

impl Drop for Spooled {
    fn drop(&mut self) {
        let mut shared = self.spool.lock();
        for block in &self.blocks {
            match block {
                Block::Memory(held) => shared.memory -= held.capacity(),
                Block::File { index, .. } => shared.free.push(*index),
            }
        }
        // Nobody uses the file: what it takes on the disk is given back.
        if shared.blocks > 0 && shared.free.len() as u64 == shared.blocks {
            (shared.blocks, shared.free, shared.file) = (0, Vec::new(), None);
        }
    }
}

/// Reads a body. Made by [`Spooled::reader`].
#[derive(Debug, Clone)]
pub struct SpooledReader<'a> {
    body: &'a Spooled,
    offset: u64,
}

impl Read for SpooledReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.body.read_at(self.offset, buffer)?;
        self.offset += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(body: &Spooled) -> Vec<u8> {
        body.first(usize::MAX).unwrap()
    }

    #[test]
    fn what_goes_over_the_memory_lies_in_the_file_and_is_the_same() {
        let spool = Spool::new(100_000, None);
        let (mut one, mut two) = (spool.body(), spool.body());
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| (number * 7 / 3) as u8).collect();
        for (at, chunk) in bytes.chunks(9_999).enumerate() {
            one.append(chunk).unwrap();
            two.append(&chunk[..chunk.len() / 2]).unwrap();
            assert!(spool.memory() <= 100_000, "after {at} chunks");
        }
        assert!(all(&one) == bytes && one.len() == 1_000_000);
        assert_eq!(all(&two).len() as u64, two.len());
        assert!(spool.file_len() >= 1_300_000);
        assert_eq!(one.first(10).unwrap(), bytes[..10]);
        drop(one);
        let after = spool.file_len();
        let mut three = spool.body();
        three.append(&bytes[..500_000]).unwrap();
        assert!(all(&three) == bytes[..500_000]);
        assert_eq!(spool.file_len(), after, "the blocks of a body that is gone are used again");
        drop((two, three));
        assert_eq!((spool.memory(), spool.file_len()), (0, 0));
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let spool = Spool::new(0, Some("/no/such/folder".into()));
        let mut body = spool.body();
        assert_eq!(body.append(b"x").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!((body.len(), all(&body)), (0, Vec::new()));
    }

    proptest! {
        #[test]
        fn a_body_is_what_was_appended(
            memory in 0..300_000_usize,
            lens in prop::collection::vec(0..70_000_usize, 0..8),
        ) {
            let spool = Spool::new(memory, None);
            let (mut body, mut expected) = (spool.body(), Vec::new());
            for len in lens {
                let bytes = vec![expected.len() as u8; len];
                body.append(&bytes).unwrap();
                expected.extend(bytes);
                prop_assert!(spool.memory() <= memory);
            }
            prop_assert!(all(&body) == expected);
        }
    }
}
