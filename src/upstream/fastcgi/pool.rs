//! The servers of a forwarder: which of them is asked next, on which connection, and who waits for one.
//!
//! One mutex guards it all; it is held for a few comparisons, and never across an await.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::Config;
use super::connect::Connect;
use super::connection::{Connection, Io};
use super::failure::{Cause, Failure};

/// After how long a new connection that was not heard of counts as one that the server has not accepted. A server that has, and takes longer for
/// its answers, loses nothing but connections that are made again.
const STARVES_AFTER: Duration = Duration::from_millis(50);

/// How long after an answer a server that closes the connection all the same has done so: php-fpm does when it renews a process. It even reads what
/// is sent meanwhile, so that nobody could tell whether that was carried out.
const SETTLES_AFTER: Duration = Duration::from_millis(10);

/// All servers.
pub(super) struct Pool<C: Connect> {
    pub(super) servers: Vec<Server<C>>,
    config: Arc<Config>,
    state: Mutex<State<C::Stream>>,
}

/// A server, as far as it does not change.
pub(super) struct Server<C> {
    pub(super) connector: C,
    pub(super) name: Arc<str>,
    /// Told when a paused server has no request left, and when it has had its number of requests.
    pub(super) changed: Notify,
}

struct State<S: Io> {
    servers: Vec<ServerState<S>>,
    /// First come, first served.
    waiting: VecDeque<Waiting<S>>,
    /// Where to look first among servers that have as few connections as others.
    turn: usize,
    /// Whether a task closes connections that have been idle for too long.
    is_swept: bool,
    /// Whether a task will look whether idle connections keep a server from accepting others.
    is_relieved: bool,
}

struct ServerState<S: Io> {
    /// Connections with a request, and those that are being made.
    active: usize,
    /// Of these, since when those wait that are new and have not been heard of, the oldest first: the server may not even have accepted them.
    unheard: VecDeque<Instant>,
    /// The one that was used last is last, and used first.
    idle: Vec<Idle<S>>,
    /// How often the server failed without having answered in between.
    failures: u32,
    down_until: Option<Instant>,
    /// A request is finding out whether a server that was down is up again.
    is_probed: bool,
    /// Gets no requests: it is being renewed.
    is_paused: bool,
    /// How many requests it may still be given until it is renewed.
    left: u64,
}

struct Idle<S: Io> {
    connection: Box<Connection<S>>,
    since: Instant,
}

/// A request in the queue.
struct Waiting<S: Io> {
    tried: Vec<usize>,
    careful: bool,
    grant: oneshot::Sender<Grant<S>>,
}

/// A place at a server, with a connection to it if one was idle.
struct Grant<S: Io> {
    server: usize,
    connection: Option<Box<Connection<S>>>,
    /// Its place in [`ServerState::unheard`].
    unheard_since: Option<Instant>,
    /// It is the one that [`ServerState::is_probed`] speaks of.
    is_probe: bool,
    /// The server had failed last.
    is_failing: bool,
}

/// The right to one connection to a server, given back when it is dropped.
pub(super) struct Place<C: Connect> {
    pool: Arc<Pool<C>>,
    /// Until it is given back.
    grant: Option<Grant<C::Stream>>,
}

impl<C: Connect> Pool<C> {
    pub(super) fn new(servers: Vec<(C, Arc<str>)>, config: Arc<Config>) -> Arc<Self> {
        let states = servers.iter().map(|_| ServerState {
            active: 0,
            unheard: VecDeque::new(),
            idle: Vec::new(),
            failures: 0,
            down_until: None,
            is_probed: false,
            is_paused: false,
            left: u64::MAX,
        });
        let state =
            State { servers: states.collect(), waiting: VecDeque::new(), turn: 0, is_swept: false, is_relieved: false };
        let servers = servers.into_iter();
        let servers = servers.map(|(connector, name)| Server { connector, name, changed: Notify::new() }).collect();
        Arc::new(Self { servers, config, state: Mutex::new(state) })
    }

    /// A place at the server that has the fewest connections, of those that are up and were not tried, if there is one and nobody waits for it.
    ///
    /// A server that is down is asked only when its time is over, by one request, or when there is no other.
    ///
    /// One who is `careful` gets no connection on which the last answer has only just ended.
    pub(super) fn place_now(self: &Arc<Self>, tried: &[usize], careful: bool) -> Option<Place<C>> {
        self.grant_now(&mut self.state(), tried, careful).map(|grant| self.occupy(grant))
    }

    fn grant_now(&self, state: &mut State<C::Stream>, tried: &[usize], careful: bool) -> Option<Grant<C::Stream>> {
        // Nobody overtakes those who wait, save who has waited before.
        (state.waiting.is_empty() || !tried.is_empty()).then(|| state.grant(tried, careful, &self.config)).flatten()
    }

    /// As [`Pool::place_now`], and waits for one in a bounded queue.
    pub(super) async fn place(self: &Arc<Self>, tried: &[usize], careful: bool) -> Result<Place<C>, Failure> {
        let receiver = {
            let mut state = self.state();
            if let Some(grant) = self.grant_now(&mut state, tried, careful) {
                drop(state);
                return Ok(self.occupy(grant));
            }
            let limit = self.config.queue;
            if state.waiting.len() >= limit {
                return Err(Failure { server: None, cause: Cause::QueueFull(limit) });
            }
            let (grant, receiver) = oneshot::channel();
            let waiting = Waiting { tried: tried.to_vec(), careful, grant };
            match tried.is_empty() {
                true => state.waiting.push_back(waiting),
                false => state.waiting.push_front(waiting),
            }
            receiver
        };
        let mut queued = Queued { pool: self, receiver };
        match tokio::time::timeout(self.config.queue_wait, &mut queued.receiver).await {
            Ok(Ok(grant)) => Ok(self.occupy(grant)),
            _ => Err(Failure { server: None, cause: Cause::QueueTimeout(self.config.queue_wait) }),
        }
    }

    fn occupy(self: &Arc<Self>, grant: Grant<C::Stream>) -> Place<C> {
        Place { pool: self.clone(), grant: Some(grant) }
    }

    /// Takes a place back, with its connection if the next request may have that.
    fn release(self: &Arc<Self>, mut grant: Grant<C::Stream>, connection: Option<Box<Connection<C::Stream>>>) {
        let index = grant.server;
        let mut state = self.state();
        let now = Instant::now();
        let server = &mut state.servers[index];
        server.active -= 1;
        server.hear(grant.unheard_since.take());
        server.is_probed &= !grant.is_probe;
        let is_wanted = self.config.keep_alive
            && !server.is_starving(now)
            && !server.is_out_of_service()
            && server.idle.len() < self.config.idle;
        let is_idle = is_wanted && connection.is_some();
        // What is not kept is closed when the mutex is free.
        grant.connection = match connection {
            Some(connection) if is_wanted => {
                server.idle.push(Idle { connection, since: now });
                None
            }
            other => other,
        };
        let has_changed = server.active == 0 || server.left == 0;
        state.dispatch(&self.config);
        let to_sweep = is_idle && !std::mem::replace(&mut state.is_swept, true);
        let may_starve = is_idle && !state.servers[index].unheard.is_empty();
        let to_relieve = may_starve && !std::mem::replace(&mut state.is_relieved, true);
        drop(state);
        if has_changed {
            self.servers[index].changed.notify_waiters();
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            if to_sweep {
                runtime.spawn(Self::sweep(Arc::downgrade(self), self.config.idle_time));
            }
            if to_relieve {
                runtime.spawn(Self::relieve(Arc::downgrade(self)));
            }
        }
    }

    /// How many servers there are that have not been tried.
    pub(super) fn untried(&self, tried: &[usize]) -> usize {
        self.servers.len() - tried.len()
    }

    fn state(&self) -> MutexGuard<'_, State<C::Stream>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what has been idle for too long, until nothing is idle.
    async fn sweep(pool: Weak<Self>, idle_time: Duration) {
        loop {
            let next = {
                let Some(pool) = pool.upgrade() else { return };
                let mut state = pool.state();
                let mut expired = Vec::new();
                let now = Instant::now();
                let mut oldest: Option<Instant> = None;
                for server in &mut state.servers {
                    // The one that was idle first is first.
                    let keep_from = server.idle.iter().take_while(|idle| now - idle.since >= idle_time).count();
                    expired.extend(server.idle.drain(..keep_from));
                    oldest = [oldest, server.idle.first().map(|idle| idle.since)].into_iter().flatten().min();
                }
                state.is_swept = oldest.is_some();
                drop(state);
                drop(expired);
                match oldest {
                    Some(oldest) => oldest + idle_time,
                    None => return,
                }
            };
            tokio::time::sleep_until(next).await;
        }
    }

    /// Closes idle connections to servers that do not accept others, as long as there may be such.
    async fn relieve(pool: Weak<Self>) {
        loop {
            tokio::time::sleep(STARVES_AFTER).await;
            let Some(pool) = pool.upgrade() else { return };
            let mut state = pool.state();
            let now = Instant::now();
            let mut closed = Vec::new();
            for server in state.servers.iter_mut().filter(|server| server.is_starving(now)) {
                closed.append(&mut server.idle);
            }
            state.is_relieved =
                state.servers.iter().any(|server| !server.idle.is_empty() && !server.unheard.is_empty());
            let is_over = !state.is_relieved;
            drop(state);
            drop(closed);
            if is_over {
                return;
            }
        }
    }

    /// Gives a server no more requests, and waits until it has none, at most for so long.
    pub(super) async fn pause(&self, server: usize, grace: Duration) {
        let waiting = async {
            loop {
                let changed = self.servers[server].changed.notified();
                let mut changed = std::pin::pin!(changed);
                changed.as_mut().enable();
                if self.state().servers[server].active == 0 {
                    return;
                }
                changed.await;
            }
        };
        self.hold(server);
        let _ = tokio::time::timeout(grace, waiting).await;
    }

    /// Gives a server no more requests.
    pub(super) fn hold(&self, server: usize) {
        let idle = {
            let mut state = self.state();
            state.servers[server].is_paused = true;
            std::mem::take(&mut state.servers[server].idle)
        };
        drop(idle);
    }

    /// Gives a server requests again, so many until [`Pool::used_up`].
    pub(super) fn resume(&self, server: usize, requests: u64) {
        let mut state = self.state();
        let paused = &mut state.servers[server];
        (paused.is_paused, paused.left, paused.failures, paused.down_until) = (false, requests, 0, None);
        state.dispatch(&self.config);
    }

    /// How many requests a server may still be given.
    pub(super) fn left(&self, server: usize) -> u64 {
        self.state().servers[server].left
    }

    /// Waits until a server was given all the requests that it may have.
    pub(super) async fn used_up(&self, server: usize) {
        loop {
            let changed = self.servers[server].changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if self.state().servers[server].left == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl<S: Io> ServerState<S> {
    fn is_out_of_service(&self) -> bool {
        self.is_paused || self.left == 0
    }

    /// Whether a new connection has waited for so long that the server may not have accepted it: one that serves a connection at a time does not
    /// as long as it has one, and a connection that is kept would be that.
    fn is_starving(&self, now: Instant) -> bool {
        self.unheard.front().is_some_and(|since| now - *since >= STARVES_AFTER)
    }

    /// A connection that waited since then has been heard of, or is no more.
    fn hear(&mut self, since: Option<Instant>) {
        if let Some(since) = since
            && let Ok(index) = self.unheard.binary_search(&since)
        {
            self.unheard.remove(index);
        }
    }
}

impl<S: Io> State<S> {
    /// A place now, if there is one.
    fn grant(&mut self, tried: &[usize], careful: bool, config: &Config) -> Option<Grant<S>> {
        let now = Instant::now();
        let mut best: Option<(usize, usize)> = None;
        let mut least_down: Option<(Instant, usize)> = None;
        let mut is_any_up = false;
        for offset in 0..self.servers.len() {
            let index = (self.turn + offset) % self.servers.len();
            let server = &self.servers[index];
            if server.is_out_of_service() || tried.contains(&index) {
                continue;
            }
            let has_room = server.active < config.connections.max(1);
            match server.down_until {
                Some(until) if until > now || server.is_probed => {
                    if has_room && least_down.is_none_or(|(earliest, _)| until < earliest) {
                        least_down = Some((until, index));
                    }
                }
                _ => {
                    is_any_up = true;
                    if has_room && best.is_none_or(|(active, _)| server.active < active) {
                        best = Some((server.active, index));
                    }
                }
            }
        }
        // Where all are down, one that may be up again is better than none.
        let index = match best {
            Some((_, index)) => index,
            None if !is_any_up => least_down?.1,
            None => return None,
        };
        if self.servers.len() > 1 {
            self.turn = (index + 1) % self.servers.len();
        }
        let server = &mut self.servers[index];
        server.active += 1;
        server.left -= 1;
        let is_probe = server.down_until.is_some();
        server.is_probed |= is_probe;
        let connection = loop {
            match server.idle.pop() {
                // A new connection waits behind those that do.
                _ if server.is_starving(now) => {
                    server.idle.clear();
                    break None;
                }
                Some(Idle { since, .. }) if now - since >= config.idle_time => {}
                // It is closed, so that a server that serves one connection at a time is free for the new one.
                Some(Idle { since, .. }) if careful && now - since < SETTLES_AFTER => break None,
                Some(Idle { mut connection, .. }) => {
                    if connection.is_quiet() {
                        break Some(connection);
                    }
                }
                None => break None,
            }
        };
        let unheard_since = connection.is_none().then_some(now);
        server.unheard.extend(unheard_since);
        Some(Grant { server: index, connection, unheard_since, is_probe, is_failing: server.failures > 0 })
    }

    /// Gives places to those who wait, in order.
    fn dispatch(&mut self, config: &Config) {
        let mut index = 0;
        while let Some(waiting) = self.waiting.get_mut(index) {
            let (tried, careful) = (std::mem::take(&mut waiting.tried), waiting.careful);
            let Some(grant) = self.grant(&tried, careful, config) else {
                let is_first_try = tried.is_empty();
                if let Some(waiting) = self.waiting.get_mut(index) {
                    waiting.tried = tried;
                }
                if is_first_try {
                    // Nobody else finds a place where one who may have any finds none.
                    return;
                }
                index += 1;
                continue;
            };
            let Some(waiting) = self.waiting.remove(index) else { return };
            if let Err(grant) = waiting.grant.send(grant) {
                // It has given up waiting; the next one in the queue is looked at in the same place.
                let server = &mut self.servers[grant.server];
                server.active -= 1;
                server.left += 1;
                server.hear(grant.unheard_since);
                server.is_probed &= !grant.is_probe;
                server.idle.extend(grant.connection.map(|connection| Idle { connection, since: Instant::now() }));
            }
        }
    }
}

/// A request that waits. What it was given at the last moment goes back.
struct Queued<'a, C: Connect> {
    pool: &'a Arc<Pool<C>>,
    receiver: oneshot::Receiver<Grant<C::Stream>>,
}

impl<C: Connect> Drop for Queued<'_, C> {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(grant) = self.receiver.try_recv() {
            self.pool.release(grant, None);
            return;
        }
        // Its place in the queue counts no more.
        if self.receiver.is_terminated() {
            return;
        }
        self.pool.state().waiting.retain(|waiting| !waiting.grant.is_closed());
    }
}

impl<C: Connect> Place<C> {
    /// The number of the server that the place is at.
    pub(super) fn index(&self) -> usize {
        self.grant.as_ref().map_or(0, |grant| grant.server)
    }

    /// The server that the place is at.
    pub(super) fn server(&self) -> &Server<C> {
        &self.pool.servers[self.index()]
    }

    /// A connection that was idle. It may have been closed by the server in the meantime.
    pub(super) fn take_connection(&mut self) -> Option<Box<Connection<C::Stream>>> {
        self.grant.as_mut()?.connection.take()
    }

    /// A connection that was kept has proved to be dead, so that a new one will be made.
    pub(super) fn renew(&mut self) {
        let index = self.index();
        let mut state = self.pool.state();
        let server = &mut state.servers[index];
        // The others that wait there will hardly live.
        let dead = std::mem::take(&mut server.idle);
        if let Some(grant) = &mut self.grant
            && grant.unheard_since.is_none()
        {
            let now = Instant::now();
            grant.unheard_since = Some(now);
            server.unheard.push_back(now);
        }
        drop(state);
        drop(dead);
    }

    /// The server answers.
    pub(super) fn succeeded(&mut self) {
        let Some(grant) = &mut self.grant else { return };
        if grant.unheard_since.is_none() && !grant.is_failing {
            return;
        }
        let mut state = self.pool.state();
        let server = &mut state.servers[grant.server];
        server.hear(grant.unheard_since.take());
        let was_down = server.down_until.take().is_some();
        server.failures = 0;
        drop(state);
        if was_down {
            tracing::info!(server = &*self.server().name, "the server answers again");
        }
    }

    /// The server could not be reached, or went away: it is left alone for a while, each time for longer. Where there is no other, it is asked
    /// all the same.
    pub(super) fn failed(&mut self) {
        let index = self.index();
        let config = &self.pool.config;
        let mut state = self.pool.state();
        let is_only_one = state.servers.len() == 1;
        let server = &mut state.servers[index];
        let dead = std::mem::take(&mut server.idle);
        let now = Instant::now();
        // Where it is down already, another request has found that out.
        let is_news = server.is_probed || server.down_until.is_none_or(|until| until <= now);
        let pause = config.backoff.saturating_mul(1 << server.failures.min(20)).min(config.backoff_max);
        if is_news {
            server.failures = server.failures.saturating_add(1);
            server.down_until = now.checked_add(pause);
            server.is_probed = false;
        }
        drop(state);
        drop(dead);
        if is_news && !is_only_one {
            tracing::warn!(server = &*self.server().name, "the server is left alone for {pause:?}");
        }
    }

    /// Gives the place back with a connection that the next request may have.
    pub(super) fn put_back(mut self, connection: Box<Connection<C::Stream>>) {
        if let Some(grant) = self.grant.take() {
            self.pool.release(grant, Some(connection));
        }
    }
}

impl<C: Connect> Drop for Place<C> {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            self.pool.release(grant, None);
        }
    }
}
