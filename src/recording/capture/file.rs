//! The file: which packets stand in a pcap or a pcapng capture, where, when they passed, and what they begin with.
//!
//! pcap-parser knows both forms. What is left to do here is to give it one whole header, packet or block at a time, none longer than
//! a named maximum, to pass over blocks of other kinds without holding them, and to say where a broken file breaks.

use bytes::{Buf, Bytes, BytesMut};
use pcap_parser::InterfaceDescriptionBlock;
use pcap_parser::pcap::{parse_pcap_frame, parse_pcap_frame_be, parse_pcap_frame_modified, parse_pcap_header};
use pcap_parser::pcapng::{
    BOM_MAGIC, EPB_MAGIC, IDB_MAGIC, OptionCode, SHB_MAGIC, SPB_MAGIC, parse_enhancedpacketblock_be,
    parse_enhancedpacketblock_le, parse_interfacedescriptionblock_be, parse_interfacedescriptionblock_le,
    parse_sectionheaderblock, parse_simplepacketblock_be, parse_simplepacketblock_le,
};
use pcap_parser::traits::PcapNGPacketBlock;

use super::packet::Link;
use crate::recording::{ReadError, Timestamp};

/// A capture's bytes in, its packets out.
#[derive(Debug, Clone)]
pub(super) struct CaptureFile {
    max_packet_len: usize,
    /// What was received and not read yet. It begins at `offset` of the file.
    window: BytesMut,
    offset: u64,
    ended: bool,
    form: Form,
    /// So many bytes of a block that is not looked at are still to come.
    passing_over: u64,
    failure: Option<ReadError>,
}

/// One packet, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// Where its record or block begins.
    pub(super) offset: u64,
    pub(super) time: Option<Timestamp>,
    /// `None` for an interface of a kind that nothing can be read from.
    pub(super) link: Option<Link>,
    pub(super) bytes: Bytes,
}

#[derive(Debug, Clone)]
enum Form {
    /// Too little was received to tell.
    Unknown,
    Pcap {
        order: Order,
        shape: Shape,
        link: Link,
    },
    PcapNg {
        order: Order,
        /// Those of the section, in the order in which packets name them.
        interfaces: Vec<Interface>,
    },
}

/// In which order a file's numbers have their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    /// The number at `offset` of bytes that are known to reach so far.
    fn u32_at(self, bytes: &[u8], offset: usize) -> u32 {
        let mut number = [0; 4];
        number.copy_from_slice(&bytes[offset..offset + 4]);
        self.u32(number)
    }
}

/// What distinguishes pcap files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Microseconds,
    Nanoseconds,
    /// Microseconds, and eight more bytes before each packet: what some kernels' own libpcap wrote.
    Modified,
}

/// An interface on which packets of a pcapng section were captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interface {
    link: Option<Link>,
    /// The most bytes that were kept of a packet; 0 for all.
    snaplen: u32,
    /// A moment's unit, as the option if_tsresol has it.
    resolution: u8,
    /// Seconds that are added to each moment, as the option if_tsoffset has them.
    offset: i64,
}

impl CaptureFile {
    pub(super) fn new(max_packet_len: usize) -> Self {
        let (window, form) = (BytesMut::new(), Form::Unknown);
        Self { max_packet_len, window, offset: 0, ended: false, form, passing_over: 0, failure: None }
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        // What is passed over is not held.
        let skipped = bytes.len().min(usize::try_from(self.passing_over).unwrap_or(usize::MAX));
        self.passing_over -= skipped as u64;
        self.offset += skipped as u64;
        self.window.extend_from_slice(&bytes[skipped..]);
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// How much is held.
    pub(super) fn held(&self) -> usize {
        self.window.len()
    }

    /// The next packet; `None` when more bytes are needed, or all were read. An error comes again and again.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let next = match self.step() {
            Ok(Some(frame)) => return Ok(Some(frame)),
            Ok(None) => Ok(None),
            // Whole bytes of a capture's file are never missing but at its end.
            Err(Stop::Missing { .. }) if !self.ended => return Ok(None),
            Err(Stop::Missing { expected, there }) => {
                let got = format!("{there} bytes and the end of the file");
                Err(ReadError { offset: self.offset, expected, got })
            }
            Err(Stop::Wrong(error)) => Err(error),
        };
        self.failure = next.as_ref().err().cloned();
        next
    }

    fn step(&mut self) -> Result<Option<Frame>, Stop> {
        loop {
            if self.passing_over > 0 {
                return Err(missing(format!("{} more bytes of a block", self.passing_over), 0));
            }
            match &self.form {
                Form::Unknown => self.begin()?,
                Form::Pcap { .. } if self.window.is_empty() => return Ok(None),
                &Form::Pcap { order, shape, link } => return self.packet(order, shape, link).map(Some),
                Form::PcapNg { .. } if self.window.is_empty() => return Ok(None),
                &Form::PcapNg { order, .. } => {
                    if let Some(frame) = self.block(order)? {
                        return Ok(Some(frame));
                    }
                }
            }
        }
    }

    /// Finds out the form, and takes the header of a pcap file.
    fn begin(&mut self) -> Result<(), Stop> {
        let magic = match self.window[..] {
            [a, b, c, d, ..] => [a, b, c, d],
            _ => return Err(missing("the first 4 bytes of a capture".to_owned(), self.window.len())),
        };
        if magic == SHB_MAGIC.to_le_bytes() {
            self.form = Form::PcapNg { order: Order::Little, interfaces: Vec::new() };
            return Ok(());
        }
        if !is_pcap(magic) {
            let expected = "a pcap or pcapng capture".to_owned();
            return Err(self.wrong(0, expected, format!("a file that begins with {}", hex(&magic))));
        }
        if self.window.len() < PCAP_HEADER_LEN {
            return Err(missing(format!("a pcap header of {PCAP_HEADER_LEN} bytes"), self.window.len()));
        }
        let header = match parse_pcap_header(&self.window) {
            Ok((_, header)) => header,
            Err(_) => return Err(self.wrong(0, "a pcap header".to_owned(), format!("one with {}", hex(&magic)))),
        };
        let order = if header.is_bigendian() { Order::Big } else { Order::Little };
        let shape = match (header.is_modified_format(), header.is_nanosecond_precision()) {
            (true, _) => Shape::Modified,
            (false, true) => Shape::Nanoseconds,
            (false, false) => Shape::Microseconds,
        };
        // The upper half says whether packets end with a checksum of the link, which IP's own lengths leave out anyway.
        let link_type = header.network.0 as u32 & 0xffff;
        let Some(link) = Link::from_type(link_type) else {
            return Err(self.wrong(20, LINK_TYPES.to_owned(), format!("link type {link_type}")));
        };
        self.take(PCAP_HEADER_LEN);
        self.form = Form::Pcap { order, shape, link };
        Ok(())
    }

    /// The next packet of a pcap file.
    fn packet(&mut self, order: Order, shape: Shape, link: Link) -> Result<Frame, Stop> {
        let header_len = if shape == Shape::Modified { 24 } else { 16 };
        if self.window.len() < header_len {
            return Err(missing(format!("a packet's header of {header_len} bytes"), self.window.len()));
        }
        let len = order.u32_at(&self.window, 8) as usize;
        if len > self.max_packet_len {
            return Err(self.wrong(8, self.at_most(), format!("a packet of {len} bytes")));
        }
        if self.window.len() < header_len + len {
            return Err(missing(format!("a packet of {len} bytes"), self.window.len() - header_len));
        }
        let (offset, record) = self.take(header_len + len);
        let parsed = match (shape, order) {
            (Shape::Modified, _) => parse_pcap_frame_modified(&record),
            (_, Order::Little) => parse_pcap_frame(&record),
            (_, Order::Big) => parse_pcap_frame_be(&record),
        };
        // All of its bytes are there, and they may have any values.
        let (_, packet) = parsed.map_err(|_| broken(offset, "a packet"))?;
        let unit = if shape == Shape::Nanoseconds { 1 } else { 1000 };
        let time = u64::from(packet.ts_sec) * NANOSECONDS + u64::from(packet.ts_usec) * unit;
        let bytes = record.slice_ref(packet.data);
        Ok(Frame { offset, time: Some(Timestamp(time)), link: Some(link), bytes })
    }

    /// The next block of a pcapng file, which is a packet or not.
    fn block(&mut self, order: Order) -> Result<Option<Frame>, Stop> {
        if self.window.len() < BLOCK_HEADER_LEN {
            return Err(missing(format!("a block's header of {BLOCK_HEADER_LEN} bytes"), self.window.len()));
        }
        // A section's header reads the same in both orders, and says which of them holds from here on.
        let is_section = self.window[..4] == SHB_MAGIC.to_le_bytes();
        let order = if is_section { self.section_order()? } else { order };
        let block_type = order.u32_at(&self.window, 0);
        let len = order.u32_at(&self.window, 4) as usize;
        if len < BLOCK_LEN || !len.is_multiple_of(4) {
            let expected = format!("a block of at least {BLOCK_LEN} bytes in words of 4");
            return Err(self.wrong(4, expected, format!("a block of {len} bytes")));
        }
        if !matches!(block_type, SHB_MAGIC | IDB_MAGIC | EPB_MAGIC | SPB_MAGIC | OBSOLETE_PACKET) {
            self.pass_over(len);
            return Ok(None);
        }
        if len > self.max_packet_len + MAX_BESIDE_PACKET {
            return Err(self.wrong(4, self.at_most(), format!("a block of {len} bytes")));
        }
        if self.window.len() < len {
            return Err(missing(format!("a block of {len} bytes"), self.window.len()));
        }
        let again = order.u32_at(&self.window, len - 4) as usize;
        if again != len {
            return Err(self.wrong(len - 4, format!("the block's length again, {len}"), again.to_string()));
        }
        let (offset, block) = self.take(len);
        match block_type {
            SHB_MAGIC => {
                let section = parse_sectionheaderblock(&block);
                let (_, section) = section.map_err(|_| broken(offset, "a section's header"))?;
                if section.major_version != 1 {
                    let got = format!("version {}.{}", section.major_version, section.minor_version);
                    return Err(wrong(offset + 12, "a section of pcapng 1".to_owned(), got));
                }
                self.form = Form::PcapNg { order, interfaces: Vec::new() };
                Ok(None)
            }
            IDB_MAGIC => self.interface(order, offset, &block).map(|()| None),
            _ => self.packet_block(order, block_type, offset, &block).map(Some),
        }
    }

    /// In which order the section's numbers have their bytes, whose header is next.
    fn section_order(&self) -> Result<Order, Stop> {
        match self.window.get(8..12) {
            None => Err(missing("a section's header".to_owned(), self.window.len())),
            Some(magic) if magic == BOM_MAGIC.to_le_bytes() => Ok(Order::Little),
            Some(magic) if magic == BOM_MAGIC.to_be_bytes() => Ok(Order::Big),
            Some(magic) => {
                Err(self.wrong(8, "a section's byte-order magic, 1a2b3c4d or 4d3c2b1a".to_owned(), hex(magic)))
            }
        }
    }

    fn interface(&mut self, order: Order, offset: u64, block: &[u8]) -> Result<(), Stop> {
        let parsed = match order {
            Order::Little => parse_interfacedescriptionblock_le(block),
            Order::Big => parse_interfacedescriptionblock_be(block),
        };
        let (_, described) = parsed.map_err(|_| broken(offset, "an interface's description"))?;
        let Form::PcapNg { interfaces, .. } = &mut self.form else { return Ok(()) };
        if interfaces.len() == MAX_INTERFACES {
            let expected = format!("at most {MAX_INTERFACES} interfaces in a section");
            return Err(wrong(offset, expected, "one more".to_owned()));
        }
        interfaces.push(Interface {
            link: Link::from_type(described.linktype.0 as u32 & 0xffff),
            snaplen: described.snaplen,
            resolution: described.if_tsresol,
            offset: time_offset(order, &described),
        });
        Ok(())
    }

    /// A block that holds a packet.
    fn packet_block(&self, order: Order, block_type: u32, offset: u64, block: &Bytes) -> Result<Frame, Stop> {
        let (interface, time, bytes) = match block_type {
            EPB_MAGIC => {
                let parsed = match order {
                    Order::Little => parse_enhancedpacketblock_le(block),
                    Order::Big => parse_enhancedpacketblock_be(block),
                };
                let (_, packet) = parsed.map_err(|_| broken(offset, "an enhanced packet block"))?;
                let interface = self.interface_named(packet.if_id, offset + 8)?;
                let time = time(interface, packet.ts_high, packet.ts_low);
                (interface, time, block.slice_ref(packet.packet_data()))
            }
            SPB_MAGIC => {
                let parsed = match order {
                    Order::Little => parse_simplepacketblock_le(block),
                    Order::Big => parse_simplepacketblock_be(block),
                };
                let (_, packet) = parsed.map_err(|_| broken(offset, "a simple packet block"))?;
                // It names no interface, has no time, and says only how long the packet was when it passed.
                let interface = self.interface_named(0, offset)?;
                let kept = if interface.snaplen == 0 { usize::MAX } else { interface.snaplen as usize };
                let mut bytes = block.slice_ref(packet.packet_data());
                bytes.truncate(kept);
                (interface, None, bytes)
            }
            // What was written before there were enhanced packet blocks; the library takes it for an unknown one.
            _ => {
                // The block's length stands at both ends.
                let content = &block[BLOCK_HEADER_LEN..block.len() - 4];
                let Some((header, rest)) = content.split_at_checked(20) else {
                    return Err(wrong(offset, "a packet block".to_owned(), format!("one of {} bytes", block.len())));
                };
                let interface = order.u16([header[0], header[1]]);
                let interface = self.interface_named(interface.into(), offset + 8)?;
                let len = order.u32_at(header, 12) as usize;
                if len > rest.len() {
                    let expected = format!("a packet of at most {} bytes, which the block has room for", rest.len());
                    return Err(wrong(offset + 20, expected, len.to_string()));
                }
                let time = time(interface, order.u32_at(header, 4), order.u32_at(header, 8));
                (interface, time, block.slice_ref(&rest[..len]))
            }
        };
        if bytes.len() > self.max_packet_len {
            return Err(wrong(offset, self.at_most(), format!("a packet of {} bytes", bytes.len())));
        }
        Ok(Frame { offset, time, link: interface.link, bytes })
    }

    fn interface_named(&self, number: u32, offset: u64) -> Result<Interface, Stop> {
        let Form::PcapNg { interfaces, .. } = &self.form else { unreachable!("only pcapng has blocks") };
        interfaces.get(number as usize).copied().ok_or_else(|| {
            let expected = format!("the number of an interface, of which {} were described", interfaces.len());
            wrong(offset, expected, number.to_string())
        })
    }

    /// Passes over a block of `len` bytes, the rest of it as it comes.
    fn pass_over(&mut self, len: usize) {
        let there = len.min(self.window.len());
        self.window.advance(there);
        self.offset += there as u64;
        self.passing_over = (len - there) as u64;
    }

    /// Takes bytes that are there, and says where they stood.
    fn take(&mut self, len: usize) -> (u64, Bytes) {
        let offset = self.offset;
        self.offset += len as u64;
        (offset, self.window.split_to(len).freeze())
    }

    fn at_most(&self) -> String {
        format!("a packet of at most {} bytes", self.max_packet_len)
    }

    /// What is wrong at so many bytes from where the window begins.
    fn wrong(&self, at: usize, expected: String, got: String) -> Stop {
        wrong(self.offset + at as u64, expected, got)
    }
}

/// Whether a file that begins like this is a capture.
pub(super) fn is_capture(start: &[u8]) -> bool {
    let Some(magic) = start.first_chunk() else { return false };
    *magic == SHB_MAGIC.to_le_bytes() || is_pcap(*magic)
}

fn is_pcap(magic: [u8; 4]) -> bool {
    matches!(u32::from_le_bytes(magic), 0xa1b2_c3d4 | 0xa1b2_3c4d | 0xa1b2_cd34 | 0xd4c3_b2a1 | 0x4d3c_b2a1)
}

/// Why there is no next packet.
#[derive(Debug)]
enum Stop {
    /// Bytes are missing that may still come.
    Missing {
        expected: String,
        there: usize,
    },
    Wrong(ReadError),
}

fn missing(expected: String, there: usize) -> Stop {
    Stop::Missing { expected, there }
}

fn wrong(offset: u64, expected: String, got: String) -> Stop {
    Stop::Wrong(ReadError { offset, expected, got })
}

/// What the library does not like about bytes that are all there: only the lengths in them can be wrong.
fn broken(offset: u64, what: &str) -> Stop {
    wrong(offset, what.to_owned(), "one whose lengths do not fit each other".to_owned())
}

/// The option if_tsoffset: the library reads it as if every file were little-endian.
fn time_offset(order: Order, described: &InterfaceDescriptionBlock) -> i64 {
    let option = described.options.iter().find(|option| option.code == OptionCode::IfTsoffset);
    let Some(bytes) = option.and_then(|option| option.value().first_chunk().copied()) else { return 0 };
    match order {
        Order::Little => i64::from_le_bytes(bytes),
        Order::Big => i64::from_be_bytes(bytes),
    }
}

/// A moment in an interface's own units; `None` when it lies outside of what a [`Timestamp`] can say. The library knows no binary units.
fn time(interface: Interface, high: u32, low: u32) -> Option<Timestamp> {
    let units = u128::from(high) << 32 | u128::from(low);
    let exponent = u32::from(interface.resolution & 0x7f);
    let since = if interface.resolution & 0x80 == 0 {
        // There are fewer than 10^20 units, so that with a larger exponent it is no second yet, nor a nanosecond.
        10_u128.checked_pow(exponent).map_or(0, |unit| units * u128::from(NANOSECONDS) / unit)
    } else {
        (units * u128::from(NANOSECONDS)) >> exponent
    };
    let offset = i128::from(interface.offset) * i128::from(NANOSECONDS);
    let since = i128::try_from(since).ok()?.checked_add(offset)?;
    u64::try_from(since).ok().map(Timestamp)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// In a second.
const NANOSECONDS: u64 = 1_000_000_000;

/// Bytes of a pcap file's header.
const PCAP_HEADER_LEN: usize = 24;

/// What every block of a pcapng file begins with: its type and its length.
const BLOCK_HEADER_LEN: usize = 8;

/// Bytes of the shortest block: its type, its length, and the length again.
const BLOCK_LEN: usize = 12;

/// The obsolete packet block of pcapng.
const OBSOLETE_PACKET: u32 = 0x0000_0002;

/// The most bytes that a block may have beside its packet, such as options.
const MAX_BESIDE_PACKET: usize = 64 * 1024;

/// The most interfaces that a section may describe.
const MAX_INTERFACES: usize = 64 * 1024;

/// The link types that [`Link`] knows, in words.
const LINK_TYPES: &str =
    "a capture of Ethernet (link type 1), Linux cooked (113, 276), raw IP (101, 228, 229) or loopback (0, 108)";
