//! How quick scripts have been: a thread of the runtime may stand still for those that are executed and over in a moment.
//!
//! For a small script, to tell the runtime of its pipes and its exit, to go to sleep and to be woken up for each costs as much as the script itself. So whoever
//! starts it stands still until it is over, which is one wait, where it was that quick lately; all others are handed to the runtime.

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

/// What was seen of a script, and of those few that share its place in the table. Nothing depends on it but how long things take.
#[derive(Debug)]
pub(super) struct Pace {
    is_executed_quickly: AtomicBool,
    /// For how many runs to come its end is not waited for.
    left: AtomicU8,
    /// For how many it was not when it was last waited for in vain.
    pause: AtomicU8,
}

/// How many scripts can be told apart at best.
const PLACES: usize = 1024;
/// What is in the page cache is executed in a fraction of a millisecond, and in a few where others want the processor too. What is not, or lies on
/// another machine, takes longer.
const QUICKLY: Duration = Duration::from_millis(5);
/// A script that is never quick costs a vain wait in so many runs.
const LONGEST_PAUSE: u8 = 128;

static PACES: [Pace; PLACES] = [const { Pace::new() }; PLACES];

impl Pace {
    const fn new() -> Self {
        Self { is_executed_quickly: AtomicBool::new(false), left: AtomicU8::new(0), pause: AtomicU8::new(0) }
    }

    /// That of a file.
    pub(super) fn of(path: &[u8]) -> &'static Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(path);
        &PACES[hasher.finish() as usize % PLACES]
    }

    /// Whether it was executed at once when it was last started. It was not where it was never started, so that a disk that has yet to bring
    /// the file holds up no thread of the runtime.
    pub(super) fn is_executed_quickly(&self) -> bool {
        self.is_executed_quickly.load(Ordering::Relaxed)
    }

    /// It was executed now, which took so long.
    pub(super) fn executed(&self, took: Duration) {
        self.is_executed_quickly.store(took < QUICKLY, Ordering::Relaxed);
    }

    /// Whether to wait for its end. What was waited for in vain is not for its next run, then for 2, for 4, and so on.
    pub(super) fn is_awaited(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }

    /// It was waited for, and is over or not.
    pub(super) fn awaited(&self, is_over: bool) {
        let pause = match is_over {
            true => 0,
            false => (self.pause.load(Ordering::Relaxed).saturating_mul(2)).clamp(1, LONGEST_PAUSE),
        };
        self.pause.store(pause, Ordering::Relaxed);
        self.left.store(pause, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_script_is_waited_for_ever_more_seldom_and_a_quick_one_always() {
        let pace = Pace::new();
        let mut waited = Vec::new();
        for run in 0..1000 {
            if pace.is_awaited() {
                waited.push(run);
                pace.awaited(false);
            }
        }
        assert_eq!(waited, [0, 2, 5, 10, 19, 36, 69, 134, 263, 392, 521, 650, 779, 908]);
        while !pace.is_awaited() {}
        for _ in 0..10 {
            pace.awaited(true);
            assert!(pace.is_awaited());
        }
        pace.awaited(false);
        assert!(!pace.is_awaited() && pace.is_awaited(), "it has long been quick, and one slow run is soon forgotten");
    }

    #[test]
    fn a_script_is_not_known_to_be_executed_quickly_until_it_was() {
        let pace = Pace::of(b"/nowhere/a script of this test only");
        assert!(!pace.is_executed_quickly());
        pace.executed(Duration::from_micros(300));
        assert!(Pace::of(b"/nowhere/a script of this test only").is_executed_quickly());
        pace.executed(QUICKLY);
        assert!(!pace.is_executed_quickly());
    }
}
