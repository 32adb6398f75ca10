//! The recorder: what connections hand over goes to a file and to whoever looks on, and no connection ever waits for either.
//!
//! Between the connections and the writer's thread there is one buffer. It holds [`CAPACITY`] bytes; what comes while it is full is not recorded,
//! and a gap is. The writer takes the whole buffer some ten times a second, so that a crash loses no more than that.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gatespan::recording::log::{FRAME_HEADER_LEN, Frame, kind, put};
use gatespan::recording::mask::{Run, Shown};
use gatespan::recording::{ConnectionId, Direction, Mask, Timestamp, What};

use super::output::Output;

/// What connections hand their frames to.
#[derive(Debug)]
pub(super) struct Recorder {
    buffer: Mutex<Buffer>,
    /// Rung when there is something for the writer to do.
    bell: Condvar,
    /// The connection that was begun last.
    last: AtomicU64,
    shown: Shown,
}

#[derive(Debug, Default)]
struct Buffer {
    frames: Vec<u8>,
    /// Bytes that passed while there was no room for them.
    lost: u64,
    is_over: bool,
    /// Everything is written, and nothing more will be.
    is_written: bool,
}

/// How many bytes of frames wait for the writer at most, while as many are being written.
pub(super) const CAPACITY: usize = 16 << 20;

/// How much more there is room for what is short and must not be missing, such as the end of a connection.
const RESERVE: usize = 1 << 20;

/// How many bytes the writer is called for at once: they are read again by whoever looks on, while they are still in the processor's cache.
const ENOUGH: usize = 128 << 10;

/// How long the writer waits for more before it writes what is there.
const PAUSE: Duration = Duration::from_millis(100);

/// How many pieces wait for whoever looks on; what does not fit is not seen there.
pub(super) const WATCHED_PIECES: usize = 4;

/// Frames for whoever looks on.
#[derive(Debug)]
pub(super) struct Watched {
    /// Whole frames, as the file has them.
    pub(super) frames: Vec<u8>,
    /// Whether there were others before them that could not be shown.
    pub(super) is_after_gap: bool,
}

impl Recorder {
    /// Starts to write. Connections are numbered from the one after `last`.
    pub(super) fn start(
        output: Option<Output>,
        watchers: Option<SyncSender<Watched>>,
        shown: Shown,
        last: ConnectionId,
    ) -> io::Result<(Arc<Self>, JoinHandle<()>)> {
        let recorder =
            Arc::new(Self { buffer: Mutex::default(), bell: Condvar::new(), last: AtomicU64::new(last.0), shown });
        let writer = Writer { recorder: recorder.clone(), output, watchers, missed: false, lost: 0, said: None };
        let thread = std::thread::Builder::new().name("gatespan-tap-writer".into()).spawn(move || writer.run())?;
        Ok((recorder, thread))
    }

    /// Has what is there written, and the writer end.
    pub(super) fn finish(&self) {
        self.buffer().is_over = true;
        self.bell.notify_one();
    }

    /// Whether the writer has nothing to write any more.
    pub(super) fn is_finished(&self) -> bool {
        self.buffer().is_written
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds frames of at most `len` bytes if there is room for them. This is all that connections ever wait for: each other's copying of some frames.
    fn add(&self, len: usize, capacity: usize, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut buffer = self.buffer();
        let before = buffer.frames.len();
        if before + len > capacity {
            return false;
        }
        write(&mut buffer.frames);
        let after = buffer.frames.len();
        drop(buffer);
        // It sleeps while there is nothing, and is woken early when there is much.
        if (before == 0 && after > 0) || (before < ENOUGH && after >= ENOUGH) {
            self.bell.notify_one();
        }
        true
    }

    /// What there is, once there is something. Empty when all is over.
    fn take(&self, spare: Vec<u8>) -> (Vec<u8>, u64) {
        let mut buffer = self.buffer();
        while buffer.frames.is_empty() && !buffer.is_over {
            buffer = self.bell.wait(buffer).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + PAUSE;
        while buffer.frames.len() < ENOUGH && !buffer.is_over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            buffer = self.bell.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        (std::mem::replace(&mut buffer.frames, spare), buffer.lost)
    }
}

/// What is recorded of one connection.
#[derive(Debug)]
pub(super) struct Tape {
    recorder: Arc<Recorder>,
    connection: ConnectionId,
    opened: What,
    /// Whether the recording has been told that the connection was made.
    is_opened: bool,
    is_broken: bool,
    mask: Mask,
    runs: Vec<Run>,
    /// Bytes for which there was no room, since the last for which there was: to the application and to the web server.
    lost: [u64; 2],
}

impl Tape {
    /// A connection was made just now.
    pub(super) fn begin(recorder: &Arc<Recorder>, from: String, to: String) -> Self {
        let connection = ConnectionId(recorder.last.fetch_add(1, Ordering::Relaxed) + 1);
        let mut tape = Self {
            recorder: recorder.clone(),
            connection,
            opened: What::Opened { from, to },
            is_opened: false,
            is_broken: false,
            mask: Mask::new(recorder.shown),
            runs: Vec::new(),
            lost: [0; 2],
        };
        tape.add(0, CAPACITY, |_, _| {});
        tape
    }

    /// These bytes passed just now.
    pub(super) fn bytes(&mut self, direction: Direction, bytes: &[u8]) {
        let mut runs = std::mem::take(&mut self.runs);
        runs.clear();
        self.mask.pass(direction, bytes, &mut runs);
        let len = runs.iter().map(|run| FRAME_HEADER_LEN + if let Run::Kept(len) = run { *len } else { 9 }).sum();
        let connection = self.connection;
        let is_added = self.add(len, CAPACITY, |out, time| {
            let mut rest = bytes;
            for run in &runs {
                let (Run::Kept(len) | Run::Masked(len)) = *run;
                let (here, after) = rest.split_at(len);
                rest = after;
                match run {
                    Run::Kept(_) => {
                        let frame = Frame { len, kind: kind::of(direction), time: Some(time), connection };
                        out.extend_from_slice(&frame.encode());
                        out.extend_from_slice(here);
                    }
                    Run::Masked(_) => write(&What::Masked { direction, len: len as u64 }, time, connection, out),
                }
            }
        });
        self.runs = runs;
        if !is_added {
            self.lost[index(direction)] += bytes.len() as u64;
            self.recorder.buffer().lost += bytes.len() as u64;
        }
    }

    /// Nothing passes in this direction any more.
    pub(super) fn ended(&mut self, direction: Direction) {
        // After a break there is nothing that could end.
        if !self.is_broken {
            self.add_what(&What::Ended { direction });
        }
    }

    /// The connection broke.
    pub(super) fn broken(&mut self, reason: String) {
        self.is_broken = true;
        self.add_what(&What::Broken { reason });
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.mask.is_idle()
    }

    fn add_what(&mut self, what: &What) {
        let len = match what {
            What::Broken { reason } => FRAME_HEADER_LEN + reason.len(),
            _ => FRAME_HEADER_LEN + 9,
        };
        let connection = self.connection;
        self.add(len, CAPACITY + RESERVE, |out, time| write(what, time, connection, out));
    }

    /// Adds frames, behind what could not be said before.
    fn add(&mut self, len: usize, capacity: usize, frames: impl FnOnce(&mut Vec<u8>, Timestamp)) -> bool {
        let time = now();
        let connection = self.connection;
        let opened = (!self.is_opened).then_some(&self.opened);
        let gaps = DIRECTIONS.map(|direction| (direction, self.lost[index(direction)]));
        let has_gaps = self.lost != [0; 2];
        let before = match opened {
            Some(What::Opened { from, to }) => FRAME_HEADER_LEN + 4 + from.len() + to.len(),
            _ => 0,
        } + if has_gaps { 2 * (FRAME_HEADER_LEN + 9) } else { 0 };
        let is_added = self.recorder.add(before + len, capacity, |out| {
            if let Some(opened) = opened {
                write(opened, time, connection, out);
            }
            if has_gaps {
                for (direction, len) in gaps.into_iter().filter(|(_, len)| *len > 0) {
                    write(&What::Gap { direction, len: Some(len) }, time, connection, out);
                }
            }
            frames(out, time);
        });
        if is_added {
            self.is_opened = true;
            self.lost = [0; 2];
        }
        is_added
    }
}

pub(super) const DIRECTIONS: [Direction; 2] = [Direction::ToApplication, Direction::ToWebServer];

/// The place of a direction among the two.
pub(super) fn index(direction: Direction) -> usize {
    match direction {
        Direction::ToApplication => 0,
        Direction::ToWebServer => 1,
    }
}

pub(super) fn write(what: &What, time: Timestamp, connection: ConnectionId, out: &mut Vec<u8>) {
    // The texts are addresses and errors of this process, far shorter than a frame: there is nothing that could be refused.
    let _ = put(what, Some(time), connection, out);
}

pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The thread that writes.
struct Writer {
    recorder: Arc<Recorder>,
    output: Option<Output>,
    watchers: Option<SyncSender<Watched>>,
    /// Whether whoever looks on has missed something.
    missed: bool,
    /// What was lost when that was said last, and when.
    lost: u64,
    said: Option<Instant>,
}

/// How often it is said at most that the recording has gaps.
const SAID_EVERY: Duration = Duration::from_secs(10);

impl Writer {
    fn run(mut self) {
        let mut spare = Vec::new();
        loop {
            let (frames, lost) = self.recorder.take(spare);
            if frames.is_empty() {
                break;
            }
            self.say_what_is_lost(lost, false);
            if let Some(output) = &mut self.output {
                output.write(&frames);
            }
            spare = self.show(frames);
        }
        let lost = self.recorder.buffer().lost;
        self.say_what_is_lost(lost, true);
        if let Some(output) = self.output.take() {
            output.finish();
        }
        self.recorder.buffer().is_written = true;
    }

    /// Hands frames on; gives back what can be used again.
    fn show(&mut self, mut frames: Vec<u8>) -> Vec<u8> {
        let Some(watchers) = &self.watchers else {
            frames.clear();
            return frames;
        };
        let room = Vec::with_capacity(frames.len().min(ENOUGH));
        // At the end there is time to wait, and not for ever.
        let until = Instant::now() + Duration::from_secs(1);
        let mut watched = Watched { frames, is_after_gap: self.missed };
        loop {
            match watchers.try_send(watched) {
                Ok(()) => {
                    self.missed = false;
                    break;
                }
                Err(TrySendError::Disconnected(_)) => {
                    self.watchers = None;
                    break;
                }
                Err(TrySendError::Full(back)) if self.recorder.buffer().is_over && Instant::now() < until => {
                    watched = back;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TrySendError::Full(_)) => {
                    self.missed = true;
                    break;
                }
            }
        }
        room
    }

    fn say_what_is_lost(&mut self, lost: u64, is_over: bool) {
        let is_time = is_over || self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY);
        if lost > self.lost && is_time {
            let more = lost - self.lost;
            tracing::warn!("{more} bytes passed faster than they could be recorded: the recording has gaps there");
            (self.lost, self.said) = (lost, Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use gatespan::recording::log::HEADER;
    use gatespan::recording::{LogReader, Reader};

    use super::*;

    fn recorder() -> Arc<Recorder> {
        let (buffer, bell) = (Mutex::default(), Condvar::new());
        Arc::new(Recorder { buffer, bell, last: AtomicU64::new(0), shown: Shown::ALL })
    }

    fn seen(recorder: &Recorder) -> Vec<What> {
        let mut reader = LogReader::new();
        reader.receive(HEADER);
        reader.receive(&std::mem::take(&mut recorder.buffer().frames));
        reader.end();
        std::iter::from_fn(|| reader.next().unwrap().map(|seen| seen.what)).collect()
    }

    #[test]
    fn what_does_not_fit_is_a_gap_and_the_end_is_there_all_the_same() {
        let recorder = recorder();
        let mut tape = Tape::begin(&recorder, "a".into(), "b".into());
        let piece = vec![1; 1 << 20];
        for _ in 0..17 {
            tape.bytes(Direction::ToApplication, &piece);
        }
        tape.bytes(Direction::ToWebServer, &piece);
        tape.ended(Direction::ToApplication);
        assert_eq!(recorder.buffer().lost, 3 << 20);
        let seen = seen(&recorder);
        let gap = |direction, len| What::Gap { direction, len: Some(len) };
        let expected = [
            gap(Direction::ToApplication, 2 << 20),
            gap(Direction::ToWebServer, 1 << 20),
            What::Ended { direction: Direction::ToApplication },
        ];
        assert_eq!(seen[seen.len() - 3..], expected);
        tape.bytes(Direction::ToWebServer, b"again");
        assert_eq!(seen_len(&recorder), 1);
    }

    fn seen_len(recorder: &Recorder) -> usize {
        seen(recorder).len()
    }

    #[test]
    fn a_connection_that_was_made_while_there_was_no_room_is_told_of_later() {
        let recorder = recorder();
        recorder.buffer().frames = vec![0; CAPACITY];
        let mut tape = Tape::begin(&recorder, "a".into(), "b".into());
        tape.bytes(Direction::ToApplication, b"lost");
        recorder.buffer().frames.clear();
        tape.bytes(Direction::ToApplication, b"kept");
        let expected = [
            What::Opened { from: "a".into(), to: "b".into() },
            What::Gap { direction: Direction::ToApplication, len: Some(4) },
            What::Bytes { direction: Direction::ToApplication, bytes: b"kept".to_vec().into() },
        ];
        assert_eq!(seen(&recorder), expected);
    }
}
