//! The TCP connections of a capture: told apart, each direction in its order, and those kept that are FastCGI.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;

use super::likeness::{begins_with_record, direction_of};
use super::packet::Segment;
use super::stream::{Item, Stream};
use super::{At, LeftOut, Settings};
use crate::protocol::fastcgi::HEADER_LEN;
use crate::recording::{ConnectionId, Direction, Seen, What};

/// Segments in, what was seen on FastCGI connections out.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    settings: Settings,
    table: HashMap<Ends, Connection>,
    /// The table in the order in which places are taken away: those first that nothing is expected of, then by their last packet.
    order: BTreeMap<Rank, Ends>,
    /// Packets so far, by which the order is.
    packets: u64,
    last_id: u64,
    /// What waits and is held, on all connections.
    cost: usize,
    out: VecDeque<Seen>,
    left_out: LeftOut,
    /// Memory for what one segment brings.
    items: Vec<(Item, At)>,
}

/// A connection's two addresses. The lower one is side 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ends([SocketAddr; 2]);

type Rank = (Expected, u64);

/// Whether anything is expected of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Expected {
    /// It is over or none of ours, and is remembered so that what is left of it is not taken for a new one.
    Nothing,
    Something,
}

#[derive(Debug, Clone)]
struct Connection {
    rank: Rank,
    /// What each side sends.
    streams: [Stream; 2],
    /// The side that received the SYN.
    acceptor: Option<usize>,
    stage: Stage,
    first: At,
    last: At,
    over: bool,
}

#[derive(Debug, Clone)]
enum Stage {
    /// Whether it is FastCGI is not known.
    Undecided(Undecided),
    Taken {
        id: ConnectionId,
        application: usize,
    },
    LeftOut,
}

#[derive(Debug, Clone, Default)]
struct Undecided {
    /// What came, and from which side.
    held: VecDeque<(usize, Item, At)>,
    cost: usize,
    /// What the application is told first, up to a header's length.
    head: Vec<u8>,
    /// The head is not to be had: what decides is what stands somewhere in the middle.
    headless: bool,
    /// From this side more came than is held.
    forgotten: [bool; 2],
}

impl Connections {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            table: HashMap::new(),
            order: BTreeMap::new(),
            packets: 0,
            last_id: 0,
            cost: 0,
            out: VecDeque::new(),
            left_out: LeftOut::default(),
            items: Vec::new(),
        }
    }

    pub(super) fn next(&mut self) -> Option<Seen> {
        self.out.pop_front()
    }

    pub(super) fn left_out(&mut self) -> &mut LeftOut {
        &mut self.left_out
    }

    pub(super) fn left_out_so_far(&self) -> LeftOut {
        self.left_out
    }

    /// What waits and is held, and what was given out and not taken yet.
    pub(super) fn held(&self) -> usize {
        let out = self.out.iter().map(|seen| if let What::Bytes { bytes, .. } = &seen.what { bytes.len() } else { 0 });
        self.cost + out.sum::<usize>()
    }

    /// Takes a segment.
    pub(super) fn segment(&mut self, segment: Segment, at: At) {
        let named = |address: &SocketAddr| self.settings.ports.contains(&address.port());
        if !self.settings.ports.is_empty() && !named(&segment.from) && !named(&segment.to) {
            self.left_out.other_ports += 1;
            return;
        }
        let (ends, sender) = Ends::of(&segment);
        if self.table.get(&ends).is_some_and(|connection| connection.is_begun_anew_by(&segment, sender)) {
            self.close(ends);
        }
        let mut connection = match self.table.remove(&ends) {
            Some(connection) => {
                self.order.remove(&connection.rank);
                connection
            }
            // A connection of which nothing came yet that it could be told by, and may never come.
            None if !segment.syn && segment.payload.is_empty() => return,
            None => self.make_room_and_open(ends, &segment, at),
        };
        self.cost -= connection.cost();
        self.packets += 1;
        connection.last = at;
        match connection.stage {
            Stage::LeftOut => {}
            _ if connection.over => self.left_out.late_packets += u64::from(!segment.payload.is_empty()),
            _ => self.take(&ends, &mut connection, sender, &segment, at),
        }
        self.cost += connection.cost();
        connection.rank = (connection.expected(), self.packets);
        self.order.insert(connection.rank, ends);
        self.table.insert(ends, connection);
    }

    /// There is no more to come: ends one of the connections that are still open. Returns whether there was one.
    pub(super) fn close_one(&mut self) -> bool {
        let Some(ends) = self.order.first_key_value().map(|(_, ends)| *ends) else { return false };
        self.close(ends);
        true
    }

    fn make_room_and_open(&mut self, ends: Ends, segment: &Segment, at: At) -> Connection {
        while self.table.len() >= self.settings.max_connections.max(1) {
            let Some((rank, oldest)) = self.order.first_key_value().map(|(rank, ends)| (*rank, *ends)) else { break };
            self.left_out.given_up += u64::from(rank.0 == Expected::Something);
            self.close(oldest);
        }
        let mut connection = Connection::new(at);
        if !self.settings.ports.is_empty() {
            // It is taken whatever its bytes are. Without a SYN, the end with the port is the application.
            let named = |side: usize| self.settings.ports.contains(&ends.0[side].port());
            connection.note_syn(segment, ends.side_of(segment.from));
            let application = connection.acceptor.unwrap_or(if named(1) { 1 } else { 0 });
            self.accept(&ends, &mut connection, application);
        }
        connection
    }

    /// What a segment of an open connection brings.
    fn take(&mut self, ends: &Ends, connection: &mut Connection, sender: usize, segment: &Segment, at: At) {
        let other = 1 - sender;
        connection.note_syn(segment, sender);
        let mut items = std::mem::take(&mut self.items);
        // Those that know a direction from its middle only know it from here on.
        if !connection.streams[sender].is_known() {
            connection.streams[sender].join(segment.sequence);
        }
        if let Some(number) = segment.acknowledged {
            let stream = &mut connection.streams[other];
            if !stream.is_known() {
                stream.join(number);
            }
            stream.acknowledge(number);
            if stream.waits_in_vain(!segment.payload.is_empty()) {
                stream.give_up_acknowledged(at, &mut items);
                self.bring(ends, connection, other, &mut items);
            }
        }

        // A SYN has a number of its own, before that of the first byte.
        let sequence = segment.sequence.wrapping_add(segment.syn.into());
        let len = segment.payload.len() as u32 + segment.cut;
        let stream = &mut connection.streams[sender];
        // RFC 9293 3.5.3: what a reset carries is a word about its cause.
        if !segment.rst && !stream.segment(sequence, &segment.payload, segment.cut, at, &mut items) {
            self.left_out.out_of_window += 1;
        }
        if segment.fin {
            stream.fin(sequence.wrapping_add(len), at, &mut items);
        }
        if stream.waits_in_vain(false) {
            stream.give_up_acknowledged(at, &mut items);
        }
        let cost = self.cost + connection.cost();
        let stream = &mut connection.streams[sender];
        let others = cost - stream.cost();
        while stream.cost() > self.settings.max_waiting
            || (stream.cost() > 0 && others + stream.cost() > self.settings.max_waiting_in_all)
        {
            stream.give_up(at, &mut items);
        }
        self.bring(ends, connection, sender, &mut items);

        if segment.rst {
            self.finish(ends, connection, &mut items);
            if let Stage::Taken { id, application } = connection.stage {
                let who = if sender == application { "application" } else { "web server" };
                self.out.push_back(at.seen(id, What::Broken { reason: format!("reset by the {who}") }));
            }
            connection.over = true;
        }
        if connection.streams.iter().all(Stream::has_ended) {
            connection.over = true;
        }
        if connection.over {
            self.leave_out_if_undecided(connection);
        }
        self.items = items;
    }

    /// Ends a connection of the table: what is missing stays missing.
    fn close(&mut self, ends: Ends) {
        let Some(mut connection) = self.table.remove(&ends) else { return };
        self.order.remove(&connection.rank);
        self.cost -= connection.cost();
        if !connection.over {
            let mut items = std::mem::take(&mut self.items);
            self.finish(&ends, &mut connection, &mut items);
            self.items = items;
            self.leave_out_if_undecided(&mut connection);
        }
    }

    fn finish(&mut self, ends: &Ends, connection: &mut Connection, items: &mut Vec<(Item, At)>) {
        let last = connection.last;
        // In the order in which they passed, as far as that is known.
        for side in connection.sides() {
            connection.streams[side].finish(last, items);
            self.bring(ends, connection, side, items);
        }
    }

    fn leave_out_if_undecided(&mut self, connection: &mut Connection) {
        if let Stage::Undecided(_) = connection.stage {
            self.leave_out(connection);
        }
    }

    fn leave_out(&mut self, connection: &mut Connection) {
        self.left_out.connections += 1;
        connection.stage = Stage::LeftOut;
        connection.streams.iter_mut().for_each(Stream::clear);
    }

    fn accept(&mut self, ends: &Ends, connection: &mut Connection, application: usize) {
        self.last_id += 1;
        let id = ConnectionId(self.last_id);
        let taken = Stage::Taken { id, application };
        let before = std::mem::replace(&mut connection.stage, taken);
        let [from, to] = [1 - application, application].map(|side| ends.0[side].to_string());
        self.out.push_back(connection.first.seen(id, What::Opened { from, to }));
        if let Stage::Undecided(undecided) = before {
            for side in [0, 1].into_iter().filter(|side| undecided.forgotten[*side]) {
                self.out.push_back(connection.first.seen(id, Item::Gap(None).what(side, application)));
            }
            for (side, item, at) in undecided.held {
                self.out.push_back(at.seen(id, item.what(side, application)));
            }
        }
    }

    /// Passes on what came out of a stream: to whoever reads, or to what decides whether anybody does.
    fn bring(&mut self, ends: &Ends, connection: &mut Connection, side: usize, items: &mut Vec<(Item, At)>) {
        for (item, at) in items.drain(..) {
            match &mut connection.stage {
                Stage::LeftOut => {}
                Stage::Taken { id, application } => {
                    let seen = at.seen(*id, item.what(side, *application));
                    self.out.push_back(seen);
                }
                Stage::Undecided(undecided) => {
                    let room = self.settings.max_waiting_in_all.saturating_sub(self.cost);
                    let verdict = undecided.judge(connection.acceptor, side, &item);
                    undecided.hold(side, item, at, room.min(MAX_UNDECIDED));
                    match verdict {
                        Verdict::FastCgi { application } => self.accept(ends, connection, application),
                        Verdict::Else => self.leave_out(connection),
                        Verdict::Unknown => {}
                    }
                }
            }
        }
        if let Stage::LeftOut = connection.stage {
            connection.streams.iter_mut().for_each(Stream::clear);
        }
    }
}

impl Ends {
    /// A segment's connection, and the side that has sent it.
    fn of(segment: &Segment) -> (Self, usize) {
        match segment.from.cmp(&segment.to) {
            // A connection from an address to itself has one side only, which is both.
            Ordering::Less | Ordering::Equal => (Self([segment.from, segment.to]), 0),
            Ordering::Greater => (Self([segment.to, segment.from]), 1),
        }
    }

    fn side_of(&self, address: SocketAddr) -> usize {
        usize::from(self.0[0] != address)
    }
}

impl Connection {
    fn new(at: At) -> Self {
        let (streams, stage) = (Default::default(), Stage::Undecided(Undecided::default()));
        let rank = (Expected::Something, 0);
        Self { rank, streams, acceptor: None, stage, first: at, last: at, over: false }
    }

    fn expected(&self) -> Expected {
        if self.over || matches!(self.stage, Stage::LeftOut) { Expected::Nothing } else { Expected::Something }
    }

    fn cost(&self) -> usize {
        let held = if let Stage::Undecided(undecided) = &self.stage { undecided.cost } else { 0 };
        held + self.streams.iter().map(Stream::cost).sum::<usize>()
    }

    /// Both sides, who asks first.
    fn sides(&self) -> [usize; 2] {
        let application =
            if let Stage::Taken { application, .. } = self.stage { Some(application) } else { self.acceptor };
        if application == Some(0) { [1, 0] } else { [0, 1] }
    }

    /// Whether a segment is the beginning of another connection between the same two ends.
    fn is_begun_anew_by(&self, segment: &Segment, sender: usize) -> bool {
        if !segment.syn {
            return false;
        }
        let stream = &self.streams[sender];
        match stream.syn() {
            // A SYN may be sent more than once.
            Some(syn) => syn != segment.sequence,
            None if segment.acknowledged.is_none() => self.over || stream.is_known(),
            // An answer to a SYN that may have been captured after it.
            None => self.over,
        }
    }

    /// Takes what a SYN says, and an answer to one: who connected, and with which numbers.
    fn note_syn(&mut self, segment: &Segment, sender: usize) {
        if !segment.syn || self.streams[sender].is_known() {
            return;
        }
        self.streams[sender].begin(segment.sequence);
        match segment.acknowledged {
            None => self.acceptor = Some(1 - sender),
            Some(number) => {
                self.acceptor = Some(sender);
                let asker = &mut self.streams[1 - sender];
                if !asker.is_known() {
                    asker.begin(number.wrapping_sub(1));
                }
            }
        }
    }
}

enum Verdict {
    FastCgi { application: usize },
    Else,
    Unknown,
}

impl Undecided {
    /// Whether the connection is FastCGI, now that `side` has sent this.
    fn judge(&mut self, acceptor: Option<usize>, side: usize, item: &Item) -> Verdict {
        match (acceptor, item) {
            // Its beginning is known, and a web server speaks first.
            (Some(application), item) if !self.headless => match item {
                _ if side == application => Verdict::Unknown,
                Item::Bytes(bytes) => {
                    let wanted = HEADER_LEN - self.head.len();
                    self.head.extend_from_slice(&bytes[..bytes.len().min(wanted)]);
                    match begins_with_record(&self.head) {
                        Some(true) => Verdict::FastCgi { application },
                        Some(false) => Verdict::Else,
                        None => Verdict::Unknown,
                    }
                }
                Item::Gap(_) => {
                    self.headless = true;
                    Verdict::Unknown
                }
                // Too little was asked to be a record.
                Item::Ended => Verdict::Else,
            },
            (_, Item::Bytes(bytes)) => match direction_of(bytes) {
                Some(direction) => {
                    let sends = if direction == Direction::ToApplication { 1 - side } else { side };
                    Verdict::FastCgi { application: acceptor.unwrap_or(sends) }
                }
                None => Verdict::Unknown,
            },
            (_, Item::Gap(_) | Item::Ended) => Verdict::Unknown,
        }
    }

    /// Keeps what came until it is decided. Of what is more than `room` the oldest is forgotten: where it begins is not known anyway, or an application spoke
    /// first, and long.
    fn hold(&mut self, side: usize, item: Item, at: At, room: usize) {
        let item = match item {
            Item::Bytes(bytes) => Item::Bytes(Bytes::copy_from_slice(&bytes)),
            item => item,
        };
        self.cost += item.cost();
        self.held.push_back((side, item, at));
        while self.cost > room
            && let Some((side, item, _)) = self.held.pop_front()
        {
            self.cost -= item.cost();
            self.forgotten[side] = true;
        }
    }
}

impl Item {
    fn cost(&self) -> usize {
        ITEM_COST + if let Self::Bytes(bytes) = self { bytes.len() } else { 0 }
    }

    /// What it is that `side` has sent.
    fn what(self, side: usize, application: usize) -> What {
        let direction = if side == application { Direction::ToWebServer } else { Direction::ToApplication };
        match self {
            Self::Bytes(bytes) => What::Bytes { direction, bytes },
            Self::Gap(len) => What::Gap { direction, len },
            Self::Ended => What::Ended { direction },
        }
    }
}

/// The most that is held of a connection of which it is not known whether it is FastCGI: two of the longest records.
const MAX_UNDECIDED: usize = 128 * 1024;

/// What holding an item costs beside its bytes, roughly.
const ITEM_COST: usize = 128;
