//! How an upstream tells the middleware around it that a script wants its request run again elsewhere (RFC 3875 6.2.2).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Where the local redirect of one request is left: a middleware that runs requests again puts one into the environ
/// ([`Environ::set_local_redirects`](super::Environ::set_local_redirects)), and an upstream that finds it there hands over the target instead of answering.
///
/// Copies share what they hold. An upstream that set a target answers with an empty response, which nobody is meant to see; one of which
/// something is on its way can't be taken back.
///
/// Where there is none in the environ, nobody would run the request again: the upstream sends the client there then, with 302.
#[derive(Clone, Default)]
pub struct LocalRedirects {
    target: Arc<Mutex<Option<Bytes>>>,
}

impl LocalRedirects {
    /// One that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// For the upstream: the path, encoded, which starts with `/`, and from a `?` on the query. The last one counts.
    pub fn set(&self, target: impl Into<Bytes>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(target.into());
    }

    /// For the middleware: what was set, once.
    pub fn take(&self) -> Option<Bytes> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for LocalRedirects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        let target = target.as_ref().map(|target| target.escape_ascii().to_string());
        f.debug_struct("LocalRedirects").field("target", &target).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_share_the_target_which_is_taken_once() {
        let middleware = LocalRedirects::new();
        let upstream = middleware.clone();
        assert_eq!(middleware.take(), None);
        upstream.set(&b"/elsewhere?a=b"[..]);
        assert_eq!(middleware.take().unwrap(), "/elsewhere?a=b");
        assert_eq!(upstream.take(), None);
    }
}
