//! What became of a request to a script, for whoever sent it and wants to know more than the answer says.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::failure::Failure;

/// Where the host leaves what became of a request's script: put one into the environ's extensions, and look when the answer is there.
///
/// Copies share what they hold. A script's exit may come after the end of its answer: [`Host::idle`](super::Host::idle) waits for it.
#[derive(Clone, Default)]
pub struct Report {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    exit: Option<ExitStatus>,
}

impl Report {
    /// One that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the answer is the host's own, since the script gave none.
    pub fn has_failed(&self) -> bool {
        self.state().failure.is_some()
    }

    /// Why the script gave no answer, once. What goes wrong after the head is the body's error.
    pub fn take_failure(&self) -> Option<Failure> {
        self.state().failure.take()
    }

    /// The exit code; `None` before the script has exited, and where a signal ended it.
    pub fn exit_code(&self) -> Option<i32> {
        self.state().exit?.code()
    }

    /// The number of the signal that ended the script.
    pub fn signal(&self) -> Option<i32> {
        self.state().exit?.signal()
    }

    pub(super) fn failed(&self, failure: Failure) {
        self.state().failure = Some(failure);
    }

    pub(super) fn exited(&self, exit: ExitStatus) {
        self.state().exit = Some(exit);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Report").field("failure", &state.failure).field("exit", &state.exit).finish()
    }
}
