//! Network captures, as tcpdump and Wireshark write them: FastCGI found in the TCP that they hold.
//!
//! [`CaptureReader`] reads pcap (of both byte orders, in micro- and nanoseconds) and pcapng, and in them Ethernet with VLAN tags, Linux cooked captures,
//! loopback and raw IP; IPv4 and IPv6. It puts TCP together, and gives back what passed on the connections that are FastCGI, with what is missing.
//!
//! Bytes go the way `file` (packets) → `packet` (segments) → `connections` (which connection) → `stream` (in which order).
//!
//! What it does not do: packets that IP has cut into fragments, tunnels (GRE, VXLAN, IP in IP) and checksums. Fragments and what can't be read are counted,
//! and what they held shows as a [`Gap`](super::What::Gap).

use std::fmt;

mod file;
mod packet;
mod connections;
mod likeness;
mod stream;

use self::connections::Connections;
use self::file::CaptureFile;
use self::packet::Packet;
use super::{ConnectionId, ReadError, Reader, Seen, Timestamp, What};

/// A reader of captures. What it has read it forgets: it holds a packet's length and what waits, both with a maximum, whatever the file.
///
/// What stands where: [`Seen::offset`] is that of the packet in the file, and [`Seen::time`] when it was captured. Bytes that came out of order are given in their
/// order, each with the offset and time that it has, so that neither always grows.
///
/// A connection's application is the end that received its SYN. Where that was not captured, it is known by the records that pass. A direction whose beginning was not
/// captured begins with a gap of unknown length.
#[derive(Debug, Clone)]
pub struct CaptureReader {
    file: CaptureFile,
    connections: Connections,
}

/// What a [`CaptureReader`] takes, and how much it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// TCP ports of applications: only connections to and from them are taken, and these whatever their bytes are. Default: none, and the connections are taken
    /// whose bytes are FastCGI.
    pub ports: Vec<u16>,
    /// The most bytes that a packet may have. Over it the file is broken. Default: 262,144, the most that tcpdump and Wireshark keep.
    pub max_packet_len: usize,
    /// The most bytes that wait, for each direction of a connection, for bytes before them that were not captured yet. Over it those are given up, as a gap.
    /// Default: 1 MiB.
    pub max_waiting: usize,
    /// The same for all connections together. Default: 64 MiB.
    pub max_waiting_in_all: usize,
    /// The most connections that are told apart at the same time. Over it the one is given up on which nothing has passed for longest: what comes of it later is taken for
    /// another. Default: 8,192.
    pub max_connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ports: Vec::new(),
            max_packet_len: 256 * 1024,
            max_waiting: 1024 * 1024,
            max_waiting_in_all: 64 * 1024 * 1024,
            max_connections: 8192,
        }
    }
}

/// What a capture held that was not given out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Connections that are not FastCGI, as far as can be seen.
    pub connections: u64,
    /// Packets of TCP from and to other ports than those that were asked for.
    pub other_ports: u64,
    /// Connections that were given up for others while something was still expected of them.
    pub given_up: u64,
    /// Parts of IP packets.
    pub fragments: u64,
    /// Packets of TCP over IP whose headers are broken, or were not kept whole.
    pub unreadable: u64,
    /// Packets with bytes on connections that were over.
    pub late_packets: u64,
    /// Packets whose numbers can't belong to their connection.
    pub out_of_window: u64,
    /// Packets of something else than TCP over IP.
    pub others: u64,
}

impl CaptureReader {
    /// A reader for one file.
    pub fn new(settings: Settings) -> Self {
        Self { file: CaptureFile::new(settings.max_packet_len), connections: Connections::new(settings) }
    }

    /// Whether a file that begins like this is a capture. Its first four bytes are enough to tell.
    pub fn recognizes(start: &[u8]) -> bool {
        file::is_capture(start)
    }

    /// What was not given out so far.
    pub fn left_out(&self) -> LeftOut {
        self.connections.left_out_so_far()
    }

    /// How many bytes of the file it holds.
    pub fn held(&self) -> usize {
        self.file.held() + self.connections.held()
    }
}

impl Default for CaptureReader {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

impl Reader for CaptureReader {
    fn receive(&mut self, bytes: &[u8]) {
        self.file.receive(bytes);
    }

    fn end(&mut self) {
        self.file.end();
    }

    fn next(&mut self) -> Result<Option<Seen>, ReadError> {
        loop {
            if let Some(seen) = self.connections.next() {
                return Ok(Some(seen));
            }
            match self.file.next() {
                Ok(Some(frame)) => {
                    let at = At { offset: frame.offset, time: frame.time };
                    let packet = frame.link.map_or(Packet::Other, |link| Packet::decode(link, &frame.bytes));
                    let left_out = self.connections.left_out();
                    match packet {
                        Packet::Segment(segment) => self.connections.segment(segment, at),
                        Packet::Fragment => left_out.fragments += 1,
                        Packet::Unreadable => left_out.unreadable += 1,
                        Packet::Other => left_out.others += 1,
                    }
                }
                Ok(None) if !self.file.has_ended() => return Ok(None),
                // Whether the file ends or breaks here: what was captured before is given out.
                end => {
                    if !self.connections.close_one() {
                        return end.map(|_| None);
                    }
                }
            }
        }
    }
}

/// A packet's place in the file and in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct At {
    offset: u64,
    time: Option<Timestamp>,
}

impl At {
    fn seen(self, connection: ConnectionId, what: What) -> Seen {
        Seen { offset: self.offset, time: self.time, connection, what }
    }
}

/// One line: what there was of each, and nothing of what there was not.
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.connections, "connections that are not FastCGI"),
            (self.other_ports, "packets from and to other ports"),
            (self.given_up, "connections given up for others"),
            (self.fragments, "fragments of IP packets"),
            (self.unreadable, "unreadable packets of TCP"),
            (self.late_packets, "packets on connections that were over"),
            (self.out_of_window, "packets with numbers of no use"),
            (self.others, "packets of something else than TCP"),
        ];
        let mut separator = "";
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {what}")?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}
