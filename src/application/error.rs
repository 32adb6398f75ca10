//! What an application fails with: any error there is, and which status it deserves.

use std::any::Any;
use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use super::input::InputError;

/// An application's failure, made by `?` from any error.
///
/// Before the head is sent it becomes an error page: 500, or the status that the error asks for
/// ([`Error::with_status`]; an [`InputError`] brings its own). After that the response is cut, so that the client can see it
/// where the protocol lets it. Either way the whole chain of causes goes to the server's log together with the request id, and
/// none of it to the client.
///
/// The error of the anyhow crate is no [`std::error::Error`], so that `?` alone does not take it; `.map_err(Error::new)?` does.
pub struct Error {
    // One pointer wide: errors travel in every `Result<Body, Error>`.
    inner: Box<Inner>,
}

struct Inner {
    cause: Box<dyn StdError + Send + Sync>,
    status: Option<u16>,
    retry_after: Option<Duration>,
}

impl Error {
    /// An error with a message of its own, or around another error.
    pub fn new(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { inner: Box::new(Inner { cause: cause.into(), status: None, retry_after: None }) }
    }

    /// The same error, answered with this status when the head has not been sent.
    ///
    /// Anything outside 400 to 599 is an error page's status no more, and taken as 500.
    #[must_use]
    pub fn with_status(mut self, code: u16) -> Self {
        self.inner.status = Some(if (400..=599).contains(&code) { code } else { 500 });
        self
    }

    /// The status that this error should be answered with: 500 unless it says otherwise.
    pub fn status(&self) -> u16 {
        match (self.inner.status, self.downcast_ref::<InputError>()) {
            (Some(status), _) => status,
            (None, Some(input)) => input.status(),
            (None, None) => 500,
        }
    }

    /// The same error, on whose page Retry-After says in how long to come again (RFC 9110 10.2.3).
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.inner.retry_after = Some(after);
        self
    }

    /// What Retry-After is to say, in seconds: rounded up, so that nobody comes too early.
    pub fn retry_after(&self) -> Option<u64> {
        self.inner.retry_after.map(|after| after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)))
    }

    /// The error it was made from, when that is a `T`.
    pub fn downcast_ref<T: StdError + 'static>(&self) -> Option<&T> {
        self.inner.cause.downcast_ref()
    }

    /// The error it was made from.
    pub fn cause(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.inner.cause
    }

    /// What a panic left behind, as an error.
    pub(crate) fn from_panic(payload: Box<dyn Any + Send>) -> Self {
        let message: Cow<'_, str> = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
            (Some(text), _) => (*text).into(),
            (None, Some(text)) => text.as_str().into(),
            (None, None) => "a value that is no text".into(),
        };
        Self::new(format!("the application panicked: {message}"))
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(cause: E) -> Self {
        Self::new(cause)
    }
}

/// The message and those of all causes, joined with colons.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner.cause)?;
        let mut cause = self.inner.cause.source();
        while let Some(next) = cause {
            write!(f, ": {next}")?;
            cause = next.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("status", &self.status()).field("cause", &self.inner.cause).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_becomes_one_by_the_question_mark() {
        fn fails() -> Result<(), Error> {
            Err(std::io::Error::other("the disk is full"))?;
            Ok(())
        }
        let error = fails().unwrap_err();
        assert_eq!(error.to_string(), "the disk is full");
        assert_eq!(error.status(), 500);
        assert!(error.downcast_ref::<std::io::Error>().is_some());
    }

    #[test]
    fn a_status_hint_outside_the_errors_is_500() {
        assert_eq!(Error::new("busy").with_status(503).status(), 503);
        assert_eq!(Error::new("odd").with_status(200).status(), 500);
    }

    #[test]
    fn a_part_of_a_second_is_waited_for_as_a_whole_one() {
        let after = |after| Error::new("busy").with_status(503).with_retry_after(after).retry_after();
        assert_eq!(after(Duration::from_millis(1001)), Some(2));
        assert_eq!(after(Duration::MAX), Some(u64::MAX));
        assert_eq!(Error::new("busy").retry_after(), None);
    }

    #[test]
    fn an_input_error_brings_its_status() {
        assert_eq!(Error::from(InputError::TooLarge { limit: 10 }).status(), 413);
        assert_eq!(Error::from(InputError::Incomplete { expected: 10, received: 3 }).status(), 400);
    }
}
