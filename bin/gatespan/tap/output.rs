//! Where a recording goes: a file that is added to and rotated, or standard output.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use gatespan::recording::log::{FRAME_HEADER_LEN, Frame, HEADER, kind, put_begun, put_continued, put_note};
use gatespan::recording::{ConnectionId, LogReader, ReadError, Reader, What};

use super::recorder::{DIRECTIONS, index, now, write};

/// A recording that is being written.
#[derive(Debug)]
pub(super) struct Output {
    to: To,
    /// A number for this process's files, and how many there have been.
    run: u64,
    number: u64,
    connections: HashMap<u64, Open>,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
enum To {
    StandardOutput,
    File {
        file: File,
        path: PathBuf,
        len: u64,
        rotation: Rotation,
    },
    /// Something that has no length, such as a pipe.
    Stream(File),
    /// What was written to has gone.
    Nothing,
}

/// When a file is followed by another, and how many are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation {
    /// Before a file is longer.
    pub(super) size: u64,
    /// Files beside the one that is written.
    pub(super) keep: u32,
}

/// A connection that has not ended.
#[derive(Debug, Default)]
struct Open {
    from: String,
    to: String,
    /// Bytes each way, in the file or not.
    passed: [u64; 2],
    /// Which directions have ended.
    has_ended: [bool; 2],
    /// What the file does not say: that it was made, bytes each way, how it ended.
    is_unknown: bool,
    lost: [u64; 2],
    end: Vec<u8>,
    is_over: bool,
}

/// Nothing can be written at present.
#[derive(Debug)]
struct Trouble {
    tried: Instant,
    lost: u64,
    error: io::Error,
}

/// How long until a file is tried again that could not be written.
const TRY_EVERY: Duration = Duration::from_secs(1);

impl Output {
    /// `-` is standard output. A recording that is there is added to. Also gives the highest number of a connection in it.
    pub(super) fn open(path: &Path, rotation: Rotation) -> anyhow::Result<(Self, ConnectionId)> {
        let mut last = ConnectionId(0);
        let to = match path == Path::new("-") {
            true => To::StandardOutput,
            false => {
                let path = std::path::absolute(path)?;
                let mut file = append(&path)?;
                if file.metadata()?.is_file() {
                    lock(&file)?;
                    let len = take_over(&mut file, &mut last)?;
                    To::File { file, path, len, rotation }
                } else {
                    To::Stream(file)
                }
            }
        };
        let mut output = Self { to, run: fastrand::u64(..), number: 1, connections: HashMap::new(), trouble: None };
        let is_new = !matches!(output.to, To::File { len: 1.., .. });
        let beginning = output.beginning(is_new);
        output.to.write_all(&beginning)?;
        Ok((output, last))
    }

    /// What a file begins with, or what is added to one.
    fn beginning(&self, is_new: bool) -> Vec<u8> {
        let mut beginning = if is_new { HEADER.to_vec() } else { Vec::new() };
        let name = concat!("gatespan ", env!("CARGO_PKG_VERSION"));
        put_begun(self.run, self.number, name, Some(now()), &mut beginning);
        beginning
    }

    /// Writes whole frames. What can't be written is made up for by gaps once that goes again.
    pub(super) fn write(&mut self, frames: &[u8]) {
        if matches!(self.to, To::Nothing) {
            return;
        }
        if let Some(trouble) = &mut self.trouble {
            if trouble.tried.elapsed() < TRY_EVERY {
                return self.lose(frames);
            }
            trouble.tried = Instant::now();
        }
        if let To::File { len, rotation, .. } = &self.to
            && len + frames.len() as u64 > rotation.size
            && *len > 0
        {
            self.rotate();
        }
        if let Err(error) = self.catch_up() {
            return self.fail(error, frames);
        }
        match self.to.write_all(frames) {
            Ok(()) => self.follow(frames, false),
            Err(error) => self.fail(error, frames),
        }
    }

    /// Nothing follows.
    pub(super) fn finish(mut self) {
        if self.trouble.is_some()
            && let Err(error) = self.catch_up()
        {
            let lost = self.trouble.map_or(0, |trouble| trouble.lost);
            tracing::error!("the recording ends without its last {lost} bytes of traffic: {error}");
        }
    }

    /// Writes what must stand before the next frames: the beginning of a file that is new, and what stands for what could not be written.
    fn catch_up(&mut self) -> io::Result<()> {
        let is_new = matches!(self.to, To::File { len: 0, .. });
        let before = match &self.trouble {
            _ if is_new => self.beginning_of_next(),
            Some(trouble) => self.made_up(trouble),
            None => return Ok(()),
        };
        self.to.write_all(&before)?;
        if self.trouble.is_some() {
            self.goes_again();
        }
        Ok(())
    }

    fn fail(&mut self, error: io::Error, frames: &[u8]) {
        match &self.to {
            To::File { path, .. } => {
                if self.trouble.is_none() {
                    tracing::error!("{}: the recording can't be written at present: {error}", path.display());
                }
                let lost = self.trouble.as_ref().map_or(0, |trouble| trouble.lost);
                self.trouble = Some(Trouble { tried: Instant::now(), lost, error });
                self.lose(frames);
            }
            // Part of a frame may have been written, which nothing can take back.
            To::StandardOutput | To::Stream(_) | To::Nothing => {
                tracing::error!("the recording ends here, and the tap goes on without it: {error}");
                self.to = To::Nothing;
                self.connections.clear();
            }
        }
    }

    fn lose(&mut self, frames: &[u8]) {
        self.follow(frames, true);
    }

    fn goes_again(&mut self) {
        if let Some(trouble) = self.trouble.take() {
            tracing::warn!("the recording goes on; {} bytes of traffic are missing", trouble.lost);
        }
        self.connections.retain(|_, open| !open.is_over);
        for open in self.connections.values_mut() {
            (open.is_unknown, open.lost) = (false, [0; 2]);
            open.end.clear();
        }
    }

    /// What stands in the file for what it does not say.
    fn made_up(&self, trouble: &Trouble) -> Vec<u8> {
        let mut frames = Vec::new();
        let time = now();
        let note = format!("{} bytes are missing: {}", trouble.lost, trouble.error);
        // The texts are short.
        let _ = put_note(&note, Some(time), ConnectionId(0), &mut frames);
        for (id, open) in &self.connections {
            let connection = ConnectionId(*id);
            if open.is_unknown {
                let opened = What::Opened { from: open.from.clone(), to: open.to.clone() };
                write(&opened, time, connection, &mut frames);
            }
            for direction in DIRECTIONS {
                let lost = open.lost[index(direction)];
                if lost > 0 {
                    write(&What::Gap { direction, len: Some(lost) }, time, connection, &mut frames);
                }
            }
            frames.extend_from_slice(&open.end);
        }
        frames
    }

    /// Notes what frames say of connections, which a file must know that begins in their middle.
    fn follow(&mut self, mut frames: &[u8], is_lost: bool) {
        while let Some(header) = frames.first_chunk() {
            let Frame { len, kind, connection, .. } = Frame::decode(header);
            let whole = &frames[..(FRAME_HEADER_LEN + len).min(frames.len())];
            frames = &frames[whole.len()..];
            let payload = &whole[FRAME_HEADER_LEN..];
            if kind == kind::OPENED {
                let from_len = payload.first_chunk().map_or(0, |len| u32::from_be_bytes(*len) as usize);
                let (from, to) = payload[4.min(payload.len())..].split_at_checked(from_len).unwrap_or_default();
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                let open = Open { from: text(from), to: text(to), is_unknown: is_lost, ..Open::default() };
                self.connections.insert(connection.0, open);
                continue;
            }
            let Some(open) = self.connections.get_mut(&connection.0) else { continue };
            let direction = match kind {
                kind::TO_APPLICATION | kind::TO_WEB_SERVER => Some(kind),
                _ => payload.first().copied(),
            };
            let way = usize::from(direction == Some(kind::TO_WEB_SERVER));
            let passed = match kind {
                kind::TO_APPLICATION | kind::TO_WEB_SERVER => len as u64,
                kind::MASKED | kind::GAP => {
                    payload.get(1..9).map_or(0, |len| u64::from_be_bytes(len.try_into().unwrap_or_default()))
                }
                _ => 0,
            };
            open.passed[way] += passed;
            match kind {
                kind::ENDED => open.has_ended[way] = true,
                kind::BROKEN => open.has_ended = [true; 2],
                _ => {}
            }
            open.is_over = open.has_ended == [true; 2];
            if is_lost {
                open.lost[way] += passed;
                if let Some(trouble) = &mut self.trouble {
                    trouble.lost += passed;
                }
                if matches!(kind, kind::ENDED | kind::BROKEN) {
                    open.end.extend_from_slice(whole);
                }
            }
            // One of which the file knows nothing is not worth a word any more.
            if open.is_over && (!is_lost || open.is_unknown) {
                self.connections.remove(&connection.0);
            }
        }
    }

    /// Puts the file aside, and begins another. Where that fails, the file goes on.
    fn rotate(&mut self) {
        let To::File { path, rotation, .. } = &self.to else { return };
        match begin_next(path, *rotation) {
            Ok(file) => {
                self.number += 1;
                self.to = To::File { file, path: path.clone(), len: 0, rotation: *rotation };
            }
            Err(error) => {
                tracing::error!("{}: the recording can't be rotated, and goes on in one file: {error}", path.display());
                if let To::File { len, rotation, .. } = &mut self.to {
                    rotation.size = rotation.size.saturating_add(*len);
                }
            }
        }
    }

    /// What a file begins with that follows another: the connections that go on.
    fn beginning_of_next(&self) -> Vec<u8> {
        let mut beginning = self.beginning(true);
        for (id, open) in self.connections.iter().filter(|(_, open)| !open.is_over) {
            let passed = (open.passed[0], open.passed[1]);
            // The addresses stood in a frame before.
            let _ = put_continued((&open.from, &open.to), passed, Some(now()), ConnectionId(*id), &mut beginning);
            for direction in DIRECTIONS.into_iter().filter(|direction| open.has_ended[index(*direction)]) {
                write(&What::Ended { direction }, now(), ConnectionId(*id), &mut beginning);
            }
        }
        beginning
    }
}

/// Moves a file, and those that were moved before it, and makes a new one.
fn begin_next(path: &Path, rotation: Rotation) -> io::Result<File> {
    let aside = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (0..rotation.keep).rev() {
        let from = if number == 0 { path.to_owned() } else { aside(number) };
        match fs::rename(from, aside(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    if rotation.keep == 0 {
        fs::remove_file(path)?;
    }
    let file = append(path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

impl To {
    /// All of it, or, in a file, nothing.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::StandardOutput => {
                let mut output = io::stdout().lock();
                output.write_all(bytes)?;
                output.flush()
            }
            Self::Stream(file) => file.write_all(bytes),
            Self::File { file, len, .. } => {
                // Where that could not be done when it was needed, it is now.
                if file.metadata()?.len() != *len {
                    file.set_len(*len)?;
                }
                match file.write_all(bytes) {
                    Ok(()) => {
                        *len += bytes.len() as u64;
                        Ok(())
                    }
                    Err(error) => {
                        let _ = file.set_len(*len);
                        Err(error)
                    }
                }
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    // What passes is nobody else's business.
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// Two that write to one file would cut each other's frames.
fn lock(file: &File) -> anyhow::Result<()> {
    rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .context("another process writes to this file")
}

/// Makes a file ready to be added to, and gives its length: it must be a recording, and the beginning of a frame at its end is cut off.
fn take_over(file: &mut File, last: &mut ConnectionId) -> anyhow::Result<u64> {
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(0);
    }
    let mut reader = LogReader::new();
    let mut read_all = |reader: &mut LogReader| -> Result<(), ReadError> {
        while let Some(seen) = reader.next()? {
            *last = (*last).max(seen.connection);
        }
        Ok(())
    };
    let damaged = "it is no whole recording, so that nothing is added to it; name another file, or move it away";
    file.seek(SeekFrom::Start(0))?;
    let mut piece = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            break;
        }
        reader.receive(&piece[..read]);
        read_all(&mut reader).context(damaged)?;
    }
    reader.end();
    let good = match read_all(&mut reader) {
        Ok(()) => len,
        Err(_) if reader.position() >= HEADER.len() as u64 => {
            let good = reader.position();
            tracing::warn!("the recording ends within a frame, which is cut off: {} bytes", len - good);
            file.set_len(good)?;
            good
        }
        Err(error) => return Err(error).context(damaged),
    };
    Ok(good)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use gatespan::recording::{Direction, Seen, Timestamp};

    use super::*;

    const ROTATION: Rotation = Rotation { size: 1 << 20, keep: 2 };

    fn frames(connection: u64, whats: &[What]) -> Vec<u8> {
        let mut frames = Vec::new();
        whats.iter().for_each(|what| write(what, Timestamp(1), ConnectionId(connection), &mut frames));
        frames
    }

    fn opened() -> What {
        What::Opened { from: "a".into(), to: "b".into() }
    }

    fn bytes(bytes: &[u8]) -> What {
        What::Bytes { direction: Direction::ToApplication, bytes: bytes.to_vec().into() }
    }

    fn read(paths: &[&Path]) -> Vec<(u64, What)> {
        let mut reader = LogReader::new();
        paths.iter().for_each(|path| reader.receive(&fs::read(path).unwrap()));
        reader.end();
        std::iter::from_fn(|| reader.next().unwrap().map(|Seen { connection, what, .. }| (connection.0, what)))
            .collect()
    }

    #[test]
    fn a_file_is_made_for_nobody_else_and_added_to_where_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.rec");
        for run in 0..2 {
            let (mut output, last) = Output::open(&path, ROTATION).unwrap();
            assert_eq!(last.0, run);
            assert!(Output::open(&path, ROTATION).unwrap_err().to_string().contains("another process"));
            output.write(&frames(run + 1, &[opened(), bytes(b"x")]));
            output.finish();
            // As a crash leaves it.
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(&frames(9, &[bytes(b"torn")])[..22]).unwrap();
        }
        Output::open(&path, ROTATION).unwrap();
        let both: Vec<u64> = read(&[&path]).into_iter().map(|(connection, _)| connection).collect();
        assert_eq!(both, [1, 1, 2, 2]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_recording_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        let torn = [
            HEADER,
            &frames(1, &[bytes(b"x")])[..10],
            b"\0\0\0\0 garbage, and more of it, and still more of it than a frame has before its payload",
        ]
        .concat();
        for content in [&b"my notes, which are longer than a line\n"[..], b"g", &torn] {
            fs::write(&path, content).unwrap();
            let error = format!("{:#}", Output::open(&path, ROTATION).unwrap_err());
            assert!(error.contains("name another file") && error.contains("at byte"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn files_are_rotated_by_size_and_connections_go_on_in_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.rec");
        let rotation = Rotation { size: 400, keep: 2 };
        let (mut output, _) = Output::open(&path, rotation).unwrap();
        output.write(&frames(1, &[opened()]));
        for number in 0..20_u8 {
            output.write(&frames(1, &[bytes(&[number; 100])]));
        }
        output.finish();
        let aside = ["a.rec.2", "a.rec.1", "a.rec"].map(|name| folder.path().join(name));
        let aside = [&*aside[0], &*aside[1], &*aside[2]];
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        assert!(aside.iter().all(|path| fs::metadata(path).unwrap().len() <= 400));
        // Put together, what was not deleted is whole; by itself each says what is missing.
        let all = read(&aside);
        assert!(matches!(&all[..2], [(1, What::Opened { .. }), (1, What::Gap { .. })]));
        let pieces: Vec<u8> = all[2..]
            .iter()
            .map(|(_, what)| match what {
                What::Bytes { bytes, .. } => bytes[0],
                other => panic!("expected bytes, got {other:?}"),
            })
            .collect();
        assert_eq!(pieces, (20 - pieces.len() as u8..20).collect::<Vec<_>>());
        let What::Gap { len, .. } = read(&[aside[2]])[1].1 else { panic!("expected a gap") };
        assert_eq!(len, Some(100 * (20 - read(&[aside[2]]).len() as u64 + 2)));
    }

    #[test]
    fn a_file_that_can_not_be_written_has_gaps_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.rec");
        let (mut output, _) = Output::open(&path, ROTATION).unwrap();
        output.write(&frames(1, &[opened(), bytes(b"one")]));
        // A descriptor that can only be read stands for a full disk.
        let To::File { file, .. } = &mut output.to else { panic!("expected a file") };
        let writable = std::mem::replace(file, File::open(&path).unwrap());
        let ended = What::Ended { direction: Direction::ToApplication };
        output.write(&frames(1, &[bytes(b"two")]));
        output.write(&frames(2, &[opened(), bytes(b"unknown")]));
        output.write(&frames(3, &[opened(), What::Broken { reason: "never heard of".into() }]));
        output.write(&frames(1, &[bytes(b"three"), ended.clone()]));
        assert!(output.trouble.as_ref().is_some_and(|trouble| trouble.lost == 15));
        let To::File { file, .. } = &mut output.to else { panic!("expected a file") };
        *file = writable;
        output.trouble.as_mut().unwrap().tried -= TRY_EVERY;
        output.write(&frames(2, &[bytes(b"four")]));
        let mut seen = read(&[&path]);
        let gap = |len| What::Gap { direction: Direction::ToApplication, len: Some(len) };
        assert_eq!(seen.pop(), Some((2, bytes(b"four"))));
        seen.sort_by_key(|(connection, _)| *connection);
        let expected = [(1, opened()), (1, bytes(b"one")), (1, gap(8)), (1, ended), (2, opened()), (2, gap(7))];
        assert_eq!(seen, expected);
    }
}
