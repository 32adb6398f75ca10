//! What still arrives for requests that were answered before all of them had come: discarded, counted and bounded.

use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::fastcgi::{RecordType, RequestId};

/// The bodies that a connection discards, one for each id.
#[derive(Default)]
pub(super) struct Unread {
    bodies: Vec<Body>,
    /// The end of the time for all of it, which begins when something is discarded.
    until: Option<Instant>,
}

struct Body {
    id: RequestId,
    /// The stream whose end is the end of all that comes for the request.
    last_stream: RecordType,
    /// How much of it was discarded, in bytes.
    len: u64,
}

/// How many bodies are counted at once. Beyond that the oldest is forgotten: some web servers never end STDIN, and none has so many
/// requests on a connection whose bodies are really on their way.
const MAX_BODIES: usize = 256;

impl Unread {
    /// A request was answered; the rest of it is still to come.
    pub(super) fn expect(&mut self, id: RequestId, last_stream: RecordType) {
        self.forget(id);
        self.push(Body { id, last_stream, len: 0 });
    }

    /// The id is used for a new request: whoever does that is done with what it was before.
    pub(super) fn forget(&mut self, id: RequestId) {
        self.bodies.retain(|body| body.id != id);
    }

    /// Counts a record that nobody wants. Gives how many bytes have been discarded for its id until now.
    pub(super) fn count(&mut self, id: RequestId, record_type: RecordType, len: u16) -> u64 {
        let Some(index) = self.bodies.iter().position(|body| body.id == id) else {
            // It never was a request, or was forgotten.
            if len > 0 {
                self.push(Body { id, last_stream: RecordType::Stdin, len: len.into() });
            }
            return len.into();
        };
        if len == 0 && record_type == self.bodies[index].last_stream {
            self.bodies.swap_remove(index);
            return 0;
        }
        self.bodies[index].len += u64::from(len);
        self.bodies[index].len
    }

    /// Whether the rest of a request is still to come.
    pub(super) fn is_expected(&self) -> bool {
        !self.bodies.is_empty()
    }

    /// Until when all that is being discarded has to have come; `None` when nothing is. Where nothing comes of a body that is
    /// expected, the connection is simply idle.
    pub(super) fn deadline(&mut self, now: Instant, timeout: Duration) -> Option<Instant> {
        if !self.bodies.iter().any(|body| body.len > 0) {
            self.until = None;
            return None;
        }
        Some(*self.until.get_or_insert(now + timeout))
    }

    fn push(&mut self, body: Body) {
        if self.bodies.len() >= MAX_BODIES {
            self.bodies.remove(0);
        }
        self.bodies.push(body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: RequestId = RequestId(1);
    const TWO: RequestId = RequestId(2);

    #[test]
    fn each_id_is_counted_for_itself() {
        let mut unread = Unread::default();
        unread.expect(ONE, RecordType::Stdin);
        unread.expect(TWO, RecordType::Data);
        assert_eq!(unread.count(ONE, RecordType::Stdin, 10), 10);
        assert_eq!(unread.count(TWO, RecordType::Stdin, 5), 5);
        assert_eq!(unread.count(ONE, RecordType::Stdin, 10), 20);
        // A Filter's file comes after its STDIN.
        assert_eq!(unread.count(TWO, RecordType::Stdin, 0), 5);
        unread.count(TWO, RecordType::Data, 0);
        unread.count(ONE, RecordType::Stdin, 0);
        assert!(!unread.is_expected());
    }

    #[test]
    fn what_was_never_a_request_is_counted_too() {
        let mut unread = Unread::default();
        assert_eq!(unread.count(ONE, RecordType::Unknown(99), 7), 7);
        assert_eq!(unread.count(ONE, RecordType::Stdin, 7), 14);
    }

    #[test]
    fn ids_without_end_are_bounded() {
        let mut unread = Unread::default();
        (1..=u16::MAX).for_each(|id| unread.expect(RequestId(id), RecordType::Stdin));
        assert_eq!(unread.bodies.len(), MAX_BODIES);
    }

    #[test]
    fn time_runs_only_while_something_comes() {
        let (now, timeout) = (Instant::now(), Duration::from_secs(5));
        let mut unread = Unread::default();
        unread.expect(ONE, RecordType::Stdin);
        assert_eq!(unread.deadline(now, timeout), None);
        unread.count(ONE, RecordType::Stdin, 1);
        assert_eq!(unread.deadline(now, timeout), Some(now + timeout));
        assert_eq!(unread.deadline(now + timeout, timeout), Some(now + timeout));
        unread.count(ONE, RecordType::Stdin, 0);
        assert_eq!(unread.deadline(now, timeout), None);
    }
}
