//! One direction of a TCP connection: segments as they were captured in, the bytes in their order out.
//!
//! Written here because no library does it as a record of what passed has to be: those that there are drop what comes out of order, or give
//! it up after a while, without a word on where bytes are missing.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::At;

/// One direction: what was given out already, and what waits for bytes before it.
///
/// Sequence numbers are counted on beyond their 32 bits, so that they do not wrap around.
#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    /// Where the next byte to give out stands; `None` before anything is known of the direction.
    next: Option<u64>,
    /// The number of the SYN, if the direction's beginning was captured.
    syn: Option<u32>,
    /// What stands before the first byte to be given out is not known, and was not said yet.
    begins_unseen: bool,
    /// What can't be given out yet, by where it stands. No two pieces overlap, and none stands before `next`.
    waiting: BTreeMap<u64, Piece>,
    cost: usize,
    /// The other end says that it has everything before this.
    acknowledged: u64,
    /// How many segments came while bytes were missing that the other end has, and brought none of them.
    in_vain: u32,
    /// Where the FIN stands.
    end: Option<u64>,
    ended: bool,
}

/// What comes out of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Bytes(Bytes),
    Gap(Option<u64>),
    Ended,
}

/// What waits.
#[derive(Debug, Clone)]
struct Piece {
    content: Content,
    at: At,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Bytes),
    /// So many bytes passed and were not kept.
    Cut(u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Cut(len) => *len,
        }
    }

    fn cost(&self) -> usize {
        PIECE_COST
            + match &self.content {
                Content::Bytes(bytes) => bytes.len(),
                Content::Cut(_) => 0,
            }
    }
}

impl Stream {
    /// The direction begins with this SYN.
    pub(super) fn begin(&mut self, syn: u32) {
        self.syn = Some(syn);
        // One turn above zero, so that numbers before it are numbers still.
        self.next = Some(TURN + u64::from(syn.wrapping_add(1)));
    }

    /// The direction's beginning was not captured, and its next byte has this number.
    pub(super) fn join(&mut self, sequence: u32) {
        self.begins_unseen = true;
        self.next = Some(TURN + u64::from(sequence));
    }

    pub(super) fn is_known(&self) -> bool {
        self.next.is_some()
    }

    pub(super) fn syn(&self) -> Option<u32> {
        self.syn
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// What the waiting takes of memory.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// Takes a segment's bytes, and so many after them that were not kept. Gives out what is in order now. Returns whether the numbers can be this
    /// connection's.
    pub(super) fn segment(
        &mut self,
        sequence: u32,
        bytes: &Bytes,
        cut: u32,
        at: At,
        out: &mut Vec<(Item, At)>,
    ) -> bool {
        let Some((next, start)) = self.place(sequence) else { return false };
        let kept_end = start + bytes.len() as u64;
        // What nearly always happens: the next bytes, and nothing waits.
        if start == next && cut == 0 && self.waiting.is_empty() {
            self.give(Item::Bytes(bytes.clone()), bytes.len() as u64, at, out);
        } else {
            self.hold(start..kept_end, at, |range| Content::Bytes(piece_of(bytes, start, range)));
            self.hold(kept_end..kept_end + u64::from(cut), at, |range| Content::Cut(range.end - range.start));
        }
        self.drain(at, out);
        if self.next != Some(next) {
            self.in_vain = 0;
        } else if self.acknowledged > next && kept_end + u64::from(cut) > start {
            self.in_vain = self.in_vain.saturating_add(1);
        }
        true
    }

    /// The direction ends at this number.
    pub(super) fn fin(&mut self, sequence: u32, at: At, out: &mut Vec<(Item, At)>) {
        if let Some((_, end)) = self.place(sequence)
            && self.end.is_none()
        {
            self.end = Some(end);
            self.drain(at, out);
        }
    }

    /// The other end has everything before this number.
    pub(super) fn acknowledge(&mut self, number: u32) {
        if let Some((_, number)) = self.place(number) {
            self.acknowledged = self.acknowledged.max(number);
        }
    }

    /// Whether bytes passed that were not captured: the other end has them, and they do not come any more.
    ///
    /// A mere acknowledgement does not say so yet, since a capture may have packets in another order than the connection: an answer does, and so does the
    /// acknowledgement of the end, and [`PATIENCE`] segments more.
    pub(super) fn waits_in_vain(&self, answered: bool) -> bool {
        let Some(next) = self.next.filter(|next| self.acknowledged > *next) else { return false };
        let waits = !self.waiting.is_empty();
        // A FIN is acknowledged like a byte, so that a single missing one may have been that.
        (answered && (waits || self.acknowledged > next + 1))
            || self.end.is_some_and(|end| self.acknowledged > end)
            || (waits && self.in_vain > PATIENCE)
    }

    /// Gives up all bytes that the other end acknowledged and the capture has not.
    pub(super) fn give_up_acknowledged(&mut self, at: At, out: &mut Vec<(Item, At)>) {
        while let Some(next) = self.next
            && next < self.acknowledged.min(self.end.unwrap_or(u64::MAX))
        {
            match self.waiting.first_key_value() {
                Some((start, _)) if *start <= self.acknowledged => self.give_up(at, out),
                _ => {
                    let end = self.acknowledged.min(self.end.unwrap_or(u64::MAX));
                    self.give(Item::Gap(Some(end - next)), end - next, at, out);
                    self.drain(at, out);
                }
            }
        }
    }

    /// Gives up the bytes before the first that waits, and gives out what is in order then. Nothing, if nothing waits.
    pub(super) fn give_up(&mut self, at: At, out: &mut Vec<(Item, At)>) {
        if let (Some(next), Some((start, piece))) = (self.next, self.waiting.first_key_value()) {
            let (len, at) = (start - next, piece.at);
            self.give(Item::Gap(Some(len)), len, at, out);
        }
        self.drain(at, out);
    }

    /// There is no more to come: gives up everything that is missing.
    pub(super) fn finish(&mut self, at: At, out: &mut Vec<(Item, At)>) {
        while !self.waiting.is_empty() {
            self.give_up(at, out);
        }
        let Some(next) = self.next else { return };
        if let Some(end) = self.end.filter(|end| *end > next) {
            self.give(Item::Gap(Some(end - next)), end - next, at, out);
        } else if self.acknowledged == next + 1 && !self.ended {
            // A FIN that was not captured is acknowledged like a byte, and is what is missing at the very end.
            self.end = Some(next);
        } else {
            self.give_up_acknowledged(at, out);
        }
        self.drain(at, out);
    }

    /// Forgets what waits.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.cost = 0;
    }

    /// Where the next byte and that of a segment's number stand; `None` if no window reaches so far.
    fn place(&self, sequence: u32) -> Option<(u64, u64)> {
        let next = self.next?;
        let ahead = i64::from(sequence.wrapping_sub(next as u32) as i32);
        // RFC 7323 2.3: a window is at most 2^30 bytes long.
        (-MAX_WINDOW..=MAX_WINDOW).contains(&ahead).then(|| (next, next.saturating_add_signed(ahead)))
    }

    /// Keeps what is new of `range`. Where bytes are there already, the first are kept.
    fn hold(&mut self, range: Range<u64>, at: At, content: impl Fn(Range<u64>) -> Content) {
        let next = self.next.unwrap_or_default();
        let mut start = range.start.max(next);
        if let Some((before, piece)) = self.waiting.range(..=start).next_back() {
            start = start.max(before + piece.len());
        }
        while start < range.end {
            let after = self.waiting.range(start..range.end).next().map(|(after, piece)| (*after, after + piece.len()));
            let (end, resume) = after.unwrap_or((range.end, range.end));
            if start < end {
                let piece = Piece { content: content(start..end), at };
                self.cost += piece.cost();
                self.waiting.insert(start, piece);
            }
            start = resume;
        }
    }

    /// Gives out what waits and is next, and the end behind it.
    fn drain(&mut self, at: At, out: &mut Vec<(Item, At)>) {
        while let Some(entry) = self.waiting.first_entry()
            && self.next == Some(*entry.key())
        {
            let piece = entry.remove();
            self.cost -= piece.cost();
            let len = piece.len();
            match piece.content {
                Content::Bytes(bytes) => self.give(Item::Bytes(bytes), len, piece.at, out),
                Content::Cut(_) => self.give(Item::Gap(Some(len)), len, piece.at, out),
            }
        }
        if self.end.is_some_and(|end| self.next.is_some_and(|next| next >= end)) && !self.ended {
            self.ended = true;
            out.push((Item::Ended, at));
        }
    }

    /// Gives out so many bytes, or that they are missing. Nothing comes after the end.
    fn give(&mut self, item: Item, len: u64, at: At, out: &mut Vec<(Item, At)>) {
        self.next = self.next.map(|next| next + len);
        if len == 0 || self.ended {
            return;
        }
        if std::mem::take(&mut self.begins_unseen) {
            out.push((Item::Gap(None), at));
            if matches!(item, Item::Gap(_)) {
                return;
            }
        }
        out.push((item, at));
    }
}

/// A part of a segment, on its own: what waits must not hold on to the window that it was read from.
fn piece_of(bytes: &Bytes, start: u64, range: Range<u64>) -> Bytes {
    Bytes::copy_from_slice(&bytes[(range.start - start) as usize..(range.end - start) as usize])
}

/// How many sequence numbers there are.
const TURN: u64 = 1 << 32;

/// The longest window that TCP knows.
const MAX_WINDOW: i64 = 1 << 30;

/// After so many more segments, bytes that the other end has are not waited for any more.
const PATIENCE: u32 = 16;

/// What a piece that waits costs beside its bytes, roughly: many small ones cost more than their bytes.
const PIECE_COST: usize = 128;
