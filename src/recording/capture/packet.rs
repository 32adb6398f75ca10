//! The packet: which TCP segment is in it. etherparse reads the headers of IP and TCP, here is what comes before and after.

use std::net::SocketAddr;

use bytes::Bytes;
use etherparse::{EtherType, Ethernet2Slice, LaxIpSlice, SingleVlanSlice, TcpSlice, ether_type, ip_number};

/// What packets of an interface begin with: the link types of pcap, by the names that they have there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// NULL and LOOP: four bytes of the address family.
    Loopback,
    Ethernet,
    /// RAW, IPV4 and IPV6: the packet begins with IP.
    Ip,
    /// LINUX_SLL, which is what tcpdump wrote for `any` interface.
    Cooked,
    /// LINUX_SLL2, which is what it writes now.
    Cooked2,
}

impl Link {
    pub(super) fn from_type(number: u32) -> Option<Self> {
        match number {
            0 | 108 => Some(Self::Loopback),
            1 => Some(Self::Ethernet),
            // 12 and 14 are what some systems number raw IP in files, too.
            12 | 14 | 101 | 228 | 229 => Some(Self::Ip),
            113 => Some(Self::Cooked),
            276 => Some(Self::Cooked2),
            _ => None,
        }
    }
}

/// What a packet is to a reader of TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    Segment(Segment),
    /// A part of an IP packet that holds TCP. They are not put together: what they held shows as a gap.
    Fragment,
    /// Something else than TCP over IP.
    Other,
    /// TCP whose headers are broken, or were not kept whole.
    Unreadable,
}

/// One TCP segment (RFC 9293 3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    pub(super) acknowledged: Option<u32>,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) payload: Bytes,
    /// So many bytes more passed, which the capture did not keep.
    pub(super) cut: u32,
}

impl Packet {
    /// Checksums are not looked at: on the machine that sends, the network card fills them in after the capture.
    pub(super) fn decode(link: Link, packet: &Bytes) -> Self {
        let Some(ip) = ip(link, packet) else { return Self::Other };
        let (headers, exts_error) = match LaxIpSlice::from_slice(ip) {
            Ok(decoded) => decoded,
            Err(_) => return Self::Unreadable,
        };
        let payload = headers.payload();
        if payload.ip_number != ip_number::TCP {
            return if exts_error.is_some() { Self::Unreadable } else { Self::Other };
        }
        if payload.fragmented {
            return Self::Fragment;
        }
        let Ok(tcp) = TcpSlice::from_slice(payload.payload) else { return Self::Unreadable };
        // IP's own length says how long the packet was when it passed. It is 0 where the network card was to cut a longer packet into several,
        // and then all of it is there.
        let passed = match &headers {
            LaxIpSlice::Ipv4(headers) => usize::from(headers.header().total_len()),
            LaxIpSlice::Ipv6(headers) => IPV6_HEADER_LEN + usize::from(headers.header().payload_length()),
        };
        let cut = if payload.incomplete { passed.saturating_sub(ip.len()) } else { 0 };
        Self::Segment(Segment {
            from: SocketAddr::new(headers.source_addr(), tcp.source_port()),
            to: SocketAddr::new(headers.destination_addr(), tcp.destination_port()),
            sequence: tcp.sequence_number(),
            acknowledged: tcp.ack().then(|| tcp.acknowledgment_number()),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            payload: packet.slice_ref(tcp.payload()),
            // Both lengths have 16 bits.
            cut: u32::try_from(cut).unwrap_or(u32::MAX),
        })
    }
}

/// Where IP begins, if it does.
fn ip(link: Link, packet: &[u8]) -> Option<&[u8]> {
    let (mut ether_type, mut rest) = match link {
        Link::Ip => return Some(packet),
        // The family's number is another on every system, and in the byte order of each: IP says itself which version it is.
        Link::Loopback => return packet.get(4..),
        Link::Ethernet => {
            let frame = Ethernet2Slice::from_slice_without_fcs(packet).ok()?;
            (frame.ether_type(), frame.payload_slice())
        }
        // Type, address type, address length, 8 bytes of address, protocol.
        Link::Cooked => (EtherType(be_u16(packet, 14)?), &packet[16..]),
        // Protocol, 2 bytes reserved, interface, address type, type, address length, 8 bytes of address.
        Link::Cooked2 => (EtherType(be_u16(packet, 0)?), packet.get(20..)?),
    };
    // Tags stand in each other; etherparse knows none that has more than this.
    for _ in 0..=MAX_TAGS {
        match ether_type {
            ether_type::IPV4 | ether_type::IPV6 => return Some(rest),
            ether_type::VLAN_TAGGED_FRAME | ether_type::PROVIDER_BRIDGING | ether_type::VLAN_DOUBLE_TAGGED_FRAME => {
                let tag = SingleVlanSlice::from_slice(rest).ok()?;
                (ether_type, rest) = (tag.ether_type(), tag.payload_slice());
            }
            _ => return None,
        }
    }
    None
}

fn be_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Bytes of an IPv6 header, which its length does not count.
const IPV6_HEADER_LEN: usize = 40;

/// The most VLAN tags that a frame may have.
const MAX_TAGS: usize = 4;
