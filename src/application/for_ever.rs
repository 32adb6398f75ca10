//! Lengths of time that somebody may have set to the longest there is, by which he means that there is no limit.

use std::time::Duration;

/// What is longer is for ever: no clock can be set to any time that a [`Duration`] can name.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Makes times such that can be added to any that it will be.
pub(crate) fn bound<'a>(times: impl IntoIterator<Item = &'a mut Duration>) {
    for time in times {
        *time = FOR_EVER.min(*time);
    }
}
