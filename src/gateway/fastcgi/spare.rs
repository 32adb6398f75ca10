//! What a request leaves behind for the next on its connection: memory, and references that are counted.
//!
//! Most requests are over before the next begins, and nobody keeps anything of them. To make all of it anew would cost as much as
//! to decode the params.

use std::sync::Arc;

use super::exchange::Exchange;
use crate::application::{Cancellation, Errors, Facts, Server, Variables};
use crate::protocol::Pairs;
use crate::protocol::fastcgi::Role;

/// The facts and the exchange of a request that nobody knows of any more, or none.
#[derive(Default)]
pub(super) struct Spare {
    parts: Option<(Arc<Facts>, Arc<Exchange>)>,
}

/// Who holds an exchange when nobody but its request does: the request, and its facts as what cancels it and as its log.
const HOLDERS: usize = 3;

impl Spare {
    /// Facts and an exchange for a new request: those that were kept, or new ones.
    pub(super) fn take(
        &mut self,
        server: &Arc<Server>,
        variables: Variables,
        role: Role,
        number: u32,
    ) -> (Arc<Facts>, Arc<Exchange>) {
        if let Some((mut facts, exchange)) = self.parts.take()
            && let Some(kept) = Arc::get_mut(&mut facts)
        {
            (kept.variables, kept.role, kept.number) = (variables, role, number);
            return (facts, exchange);
        }
        let exchange = Arc::new(Exchange::default());
        let facts = Facts {
            variables,
            server: server.clone(),
            role,
            number,
            request: Cancellation::of(exchange.clone()),
            errors: Errors::new(exchange.clone()),
        };
        (Arc::new(facts), exchange)
    }

    /// Keeps what a request leaves, if nobody else has any of it and the exchange is as good as new. Gives its params back, whose memory may
    /// be of use.
    ///
    /// The application may have kept the environ, its errors or its cancellation; they stay those of the old request then.
    pub(super) fn keep(&mut self, mut facts: Arc<Facts>, exchange: Arc<Exchange>) -> Option<Pairs> {
        let left = Arc::get_mut(&mut facts)?;
        let params = std::mem::take(&mut left.variables).into_pairs();
        if Arc::strong_count(&exchange) == HOLDERS && exchange.is_unused() {
            self.parts = Some((facts, exchange));
        }
        Some(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::application::{Cancellable, Environ};

    fn begin(spare: &mut Spare) -> (Environ, Arc<Exchange>) {
        let (facts, exchange) = spare.take(&Arc::default(), Variables::from_iter([("A", "1")]), Role::Responder, 1);
        (Environ::from(facts), exchange)
    }

    /// Whether the next request gets the exchange of the one before, whose application did that to its environ.
    fn is_used_again<T>(application: impl Fn(&Environ) -> T) -> bool {
        let mut spare = Spare::default();
        let (environ, exchange) = begin(&mut spare);
        // Not a holder, but it keeps the memory from being the next one's by chance.
        let (facts, before) = (environ.facts().clone(), Arc::downgrade(&exchange));
        let kept = application(&environ);
        drop(environ);
        spare.keep(facts, exchange);
        let (_environ, next) = begin(&mut spare);
        assert!(!next.cancelling().is_touched());
        drop(kept);
        before.ptr_eq(&Arc::downgrade(&next))
    }

    #[test]
    fn what_nobody_kept_is_used_again() {
        assert!(is_used_again(|environ| assert_eq!(environ.get("A"), Some(&b"1"[..]))));
    }

    #[test]
    fn what_the_application_kept_or_used_stays_its_own() {
        assert!(!is_used_again(Environ::without_input));
        assert!(!is_used_again(Environ::errors));
        assert!(!is_used_again(Environ::cancellation));
        assert!(!is_used_again(|environ| (environ.request_id().to_owned(), environ.errors())));
    }
}
