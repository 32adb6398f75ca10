//! Places for requests: so many run at once in all and of one script, a bounded number wait in order, the rest are refused.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

/// The places of one host. Cheap to clone.
#[derive(Clone)]
pub(super) struct Places {
    shared: Arc<Shared>,
}

/// How many places there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How many requests run at once; at least 1.
    pub(super) concurrent: usize,
    /// How many of them run the same script; at least 1.
    pub(super) concurrent_per_script: usize,
    /// How many more wait.
    pub(super) queue: usize,
    /// How long each of them waits.
    pub(super) wait: Duration,
}

/// Leave to run a script. Given back when it is dropped, which is to happen when nothing of the script is left.
pub(super) struct Place {
    shared: Arc<Shared>,
    script: Option<Arc<Path>>,
}

/// Why there was no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// The queue is full.
    Full,
    /// None became free in time.
    Waited,
}

struct Shared {
    limits: Limits,
    state: Mutex<State>,
    /// Told when the last place is given back.
    empty: Notify,
}

#[derive(Default)]
struct State {
    running: usize,
    /// How many run of each script that runs. Not counted where the limit for one script is no less than that for all.
    scripts: HashMap<Arc<Path>, usize>,
    /// In order of arrival. Nobody in it could run now.
    waiting: VecDeque<Waiting>,
    next_number: u64,
}

struct Waiting {
    number: u64,
    script: Option<Arc<Path>>,
    grant: oneshot::Sender<Place>,
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        let (concurrent, concurrent_per_script) = (limits.concurrent.max(1), limits.concurrent_per_script.max(1));
        let limits = Limits { concurrent, concurrent_per_script, ..limits };
        Self { shared: Arc::new(Shared { limits, state: Mutex::default(), empty: Notify::new() }) }
    }

    /// A place for that script. Who waits for another script's place holds up nobody else. Dropped while it waits, it gives up its
    /// place in the queue.
    pub(super) async fn place(&self, script: &Path) -> Result<Place, NoPlace> {
        let Limits { concurrent, concurrent_per_script, queue, wait } = self.shared.limits;
        let script = (concurrent_per_script < concurrent).then(|| Arc::from(script));
        let (mut queued, granted) = {
            let mut state = self.shared.state();
            // Whoever waits could not run with what is free, so that nobody is overtaken.
            if state.admit(&self.shared.limits, script.as_ref()) {
                return Ok(Place { shared: self.shared.clone(), script });
            }
            if state.waiting.len() >= queue {
                return Err(NoPlace::Full);
            }
            let (grant, granted) = oneshot::channel();
            let number = state.next_number;
            state.next_number += 1;
            state.waiting.push_back(Waiting { number, script, grant });
            (Queued { shared: &self.shared, number: Some(number) }, granted)
        };
        let granted = tokio::time::timeout(wait, granted).await;
        if let Ok(Ok(place)) = granted {
            queued.number = None;
            return Ok(place);
        }
        Err(NoPlace::Waited)
    }

    /// How many requests hold a place.
    pub(super) fn running(&self) -> usize {
        self.shared.state().running
    }

    /// Waits until nobody holds a place.
    pub(super) async fn empty(&self) {
        loop {
            let empty = self.shared.empty.notified();
            if self.running() == 0 {
                return;
            }
            empty.await;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counters and lists, none of which can be left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a place if one is free.
    fn admit(&mut self, limits: &Limits, script: Option<&Arc<Path>>) -> bool {
        if self.running >= limits.concurrent {
            return false;
        }
        if let Some(script) = script {
            match self.scripts.get_mut(script) {
                Some(running) if *running >= limits.concurrent_per_script => return false,
                Some(running) => *running += 1,
                None => drop(self.scripts.insert(script.clone(), 1)),
            }
        }
        self.running += 1;
        true
    }

    fn release(&mut self, script: Option<&Arc<Path>>) {
        self.running -= 1;
        if let Some(script) = script
            && let Some(running) = self.scripts.get_mut(script)
        {
            *running -= 1;
            if *running == 0 {
                self.scripts.remove(script);
            }
        }
    }

    /// The first that waits and can run now.
    fn next(&mut self, limits: &Limits) -> Option<Waiting> {
        if self.running >= limits.concurrent {
            return None;
        }
        let is_free =
            |script: &Arc<Path>| self.scripts.get(script).is_none_or(|running| *running < limits.concurrent_per_script);
        let index = self.waiting.iter().position(|waiting| waiting.script.as_ref().is_none_or(is_free))?;
        let waiting = self.waiting.remove(index)?;
        self.admit(limits, waiting.script.as_ref()).then_some(waiting)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.release(self.script.as_ref());
        let next = state.next(&self.shared.limits);
        if state.running == 0 {
            self.shared.empty.notify_waiters();
        }
        drop(state);
        if let Some(Waiting { script, grant, .. }) = next {
            // One that has just given up gives the place on by dropping it.
            let _ = grant.send(Place { shared: self.shared.clone(), script });
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("script", &self.script).finish_non_exhaustive()
    }
}

/// A place in the queue, which is left when this is dropped.
struct Queued<'a> {
    shared: &'a Shared,
    number: Option<u64>,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.shared.state().waiting.retain(|waiting| waiting.number != number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::poll;
    use tokio::time::Instant;

    use super::*;

    fn places(concurrent: usize, concurrent_per_script: usize, queue: usize) -> Places {
        Places::new(Limits { concurrent, concurrent_per_script, queue, wait: Duration::from_secs(10) })
    }

    #[tokio::test]
    async fn no_more_run_than_there_are_places_and_the_queue_keeps_its_order() {
        let places = places(2, 2, 2);
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let first = places.place(a).await.unwrap();
        let second = places.place(b).await.unwrap();
        let mut third = Box::pin(places.place(a));
        let mut fourth = Box::pin(places.place(b));
        assert!(poll!(&mut third).is_pending() && poll!(&mut fourth).is_pending());
        assert_eq!(places.place(a).await.unwrap_err(), NoPlace::Full);
        drop(second);
        assert!(poll!(&mut fourth).is_pending());
        let third = third.await.unwrap();
        assert_eq!(places.running(), 2);
        drop((first, third));
        drop(fourth.await.unwrap());
        assert_eq!(places.running(), 0);
    }

    #[tokio::test]
    async fn who_waits_for_one_script_holds_up_no_other() {
        let places = places(2, 1, 4);
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let first = places.place(a).await.unwrap();
        let mut second = Box::pin(places.place(a));
        assert!(poll!(&mut second).is_pending());
        let other = places.place(b).await.unwrap();
        let mut third = Box::pin(places.place(b));
        assert!(poll!(&mut third).is_pending());
        drop(other);
        assert!(poll!(&mut second).is_pending());
        let third = third.await.unwrap();
        drop(first);
        drop((second.await.unwrap(), third));
        assert!(places.shared.state().scripts.is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_queue_and_the_place_to_others() {
        let places = places(1, 1, 1);
        let a = Path::new("/a");
        let first = places.place(a).await.unwrap();
        let mut second = Box::pin(places.place(a));
        assert!(poll!(&mut second).is_pending());
        assert_eq!(places.place(a).await.unwrap_err(), NoPlace::Full);
        drop(second);
        // Granted and not taken: the place is given on.
        let mut third = Box::pin(places.place(a));
        assert!(poll!(&mut third).is_pending());
        drop(first);
        drop(third);
        drop(places.place(a).await.unwrap());
        assert_eq!(places.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_bounded() {
        let places = places(1, 1, 1);
        let first = places.place(Path::new("/a")).await.unwrap();
        let begun = Instant::now();
        assert_eq!(places.place(Path::new("/a")).await.unwrap_err(), NoPlace::Waited);
        assert_eq!(begun.elapsed().as_secs(), 10);
        drop(first);
        assert!(places.place(Path::new("/a")).await.is_ok());
    }

    #[tokio::test]
    async fn the_last_place_that_is_given_back_is_told() {
        let places = places(2, 2, 0);
        places.empty().await;
        let first = places.place(Path::new("/a")).await.unwrap();
        let second = places.place(Path::new("/a")).await.unwrap();
        let mut empty = Box::pin(places.empty());
        assert!(poll!(&mut empty).is_pending());
        drop(first);
        assert!(poll!(&mut empty).is_pending());
        drop(second);
        empty.await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cve_2012_1181_the_cap_holds_under_a_burst() {
        let places = places(3, 2, 1000);
        let most = Arc::new(Mutex::new((0, 0)));
        let tasks: Vec<_> = (0..300)
            .map(|number| {
                let (places, most) = (places.clone(), most.clone());
                tokio::spawn(async move {
                    let place = places.place(Path::new(if number % 2 == 0 { "/a" } else { "/b" })).await.unwrap();
                    {
                        let mut most = most.lock().unwrap();
                        most.0 += 1;
                        most.1 = most.1.max(most.0);
                    }
                    tokio::task::yield_now().await;
                    most.lock().unwrap().0 -= 1;
                    drop(place);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(places.running(), 0);
        assert!(most.lock().unwrap().1 <= 3);
    }
}
