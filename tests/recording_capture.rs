//! Captures from outside: files and packets written byte by byte, what TCP does on its way, and bytes that mean harm. What was captured from real servers is
//! read in `recording_fixtures.rs`.

#[path = "support/seen.rs"]
mod seen;

use std::collections::BTreeMap;

use gatespan::protocol::fastcgi::{RecordType, RequestId, put_record};
use gatespan::recording::capture::{LeftOut, Settings};
use gatespan::recording::{CaptureReader, Direction, Reader, Timestamp, What};
use proptest::collection::vec;
use proptest::prelude::*;
use seen::{bytes_of, cut_everywhere, read, read_all, take, told};

use Direction::{ToApplication, ToWebServer};

/// The two ends of the connections here.
const WEB: usize = 0;
const APP: usize = 1;

// ---- Packets ----

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// One TCP segment on its way from one end to the other.
#[derive(Debug, Clone)]
struct Segment {
    from: usize,
    ports: [u16; 2],
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    payload: Vec<u8>,
}

impl Segment {
    fn tcp(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        for port in [self.ports[self.from], self.ports[1 - self.from]] {
            tcp.extend(port.to_be_bytes());
        }
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        // Eight words of header, of which three are options: no-operations and time stamps.
        tcp.extend([0x80, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        tcp.extend(&self.payload);
        tcp
    }

    fn ipv4(&self) -> Vec<u8> {
        let tcp = self.tcp();
        let mut packet = vec![0x45, 0];
        packet.extend(u16::try_from(20 + tcp.len()).unwrap().to_be_bytes());
        packet.extend([0, 7, 0x40, 0, 64, 6, 0, 0]);
        packet.extend([10, 0, 0, self.from as u8 + 1]);
        packet.extend([10, 0, 0, 2 - self.from as u8]);
        packet.extend(tcp);
        packet
    }

    /// With two extension headers: hop-by-hop and destination options.
    fn ipv6(&self) -> Vec<u8> {
        let tcp = self.tcp();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(16 + tcp.len()).unwrap().to_be_bytes());
        packet.extend([0, 64]);
        for host in [self.from as u8 + 1, 2 - self.from as u8] {
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
        packet.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        packet.extend([6, 0, 1, 4, 0, 0, 0, 0]);
        packet.extend(tcp);
        packet
    }
}

/// A connection as both ends have it, and the packets that it makes.
struct Talk {
    ports: [u16; 2],
    next: [u32; 2],
    segments: Vec<Segment>,
}

impl Talk {
    /// Opened, from a port.
    fn open(port: u16) -> Self {
        Self::open_at(port, [1000, 5_000_000])
    }

    /// With these first sequence numbers.
    fn open_at(port: u16, next: [u32; 2]) -> Self {
        let mut talk = Self { ports: [port, 9000], next, segments: Vec::new() };
        talk.segment(WEB, SYN, b"");
        talk.segment(APP, SYN | ACK, b"");
        talk.segment(WEB, ACK, b"");
        talk
    }

    fn segment(&mut self, from: usize, flags: u8, payload: &[u8]) -> &mut Self {
        let acknowledged = if flags & ACK == 0 { 0 } else { self.next[1 - from] };
        let (ports, sequence, payload) = (self.ports, self.next[from], payload.to_vec());
        let len = payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.segments.push(Segment { from, ports, sequence, acknowledged, flags, payload });
        self.next[from] = self.next[from].wrapping_add(len);
        self
    }

    fn send(&mut self, from: usize, payload: &[u8]) -> &mut Self {
        self.segment(from, ACK, payload)
    }

    /// In segments of so many bytes.
    fn send_in(&mut self, from: usize, payload: &[u8], len: usize) -> &mut Self {
        for piece in payload.chunks(len) {
            self.send(from, piece);
        }
        self
    }

    fn acknowledge(&mut self, from: usize) -> &mut Self {
        self.segment(from, ACK, b"")
    }

    fn close(&mut self) -> &mut Self {
        self.segment(APP, FIN | ACK, b"").segment(WEB, FIN | ACK, b"").acknowledge(APP)
    }

    fn capture(&self) -> Vec<u8> {
        pcap(self.segments.iter().map(Segment::ipv4))
    }
}

fn request() -> Vec<u8> {
    let mut bytes = Vec::new();
    put_record(RecordType::BeginRequest, RequestId(1), &[0, 1, 0, 0, 0, 0, 0, 0], 0, &mut bytes);
    put_record(RecordType::Params, RequestId(1), b"\x0e\x03REQUEST_METHODGET", 1, &mut bytes);
    put_record(RecordType::Params, RequestId(1), b"", 0, &mut bytes);
    put_record(RecordType::Stdin, RequestId(1), b"", 0, &mut bytes);
    bytes
}

fn answer() -> Vec<u8> {
    let mut bytes = Vec::new();
    put_record(RecordType::Stdout, RequestId(1), b"Content-Type: text/plain\r\n\r\nhello\n", 6, &mut bytes);
    put_record(RecordType::Stdout, RequestId(1), b"", 0, &mut bytes);
    put_record(RecordType::EndRequest, RequestId(1), &[0; 8], 0, &mut bytes);
    bytes
}

/// One exchange on a connection of its own.
fn exchange(port: u16) -> Talk {
    let mut talk = Talk::open(port);
    talk.send(WEB, &request()).acknowledge(APP).send(APP, &answer()).acknowledge(WEB).close();
    talk
}

const EXCHANGE: [&str; 5] =
    ["1 opened 10.0.0.1:40000 to 10.0.0.2:9000", "1 > 60 bytes", "1 < 72 bytes", "1 < ended", "1 > ended"];

// ---- Files ----

/// A pcap file of raw IP with a packet each millisecond.
fn pcap(packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    pcap_of(Numbers::Little, 0xa1b2_c3d4, 101, packets)
}

fn pcap_of(numbers: Numbers, magic: u32, link: u32, packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut file = Vec::new();
    numbers.put32(magic, &mut file);
    numbers.put16(2, &mut file);
    numbers.put16(4, &mut file);
    for number in [0, 0, 262_144, link] {
        numbers.put32(number, &mut file);
    }
    let millisecond = if magic == 0xa1b2_3c4d { 1_000_000 } else { 1000 };
    for (index, packet) in packets.into_iter().enumerate() {
        for number in [FIRST_SECOND, index as u32 * millisecond, packet.len() as u32, packet.len() as u32] {
            numbers.put32(number, &mut file);
        }
        if magic == 0xa1b2_cd34 {
            file.extend([0; 8]);
        }
        file.extend(packet);
    }
    file
}

const FIRST_SECOND: u32 = 1_700_000_000;

/// The moment of a packet, by its number.
fn moment(index: u64) -> Option<Timestamp> {
    Some(Timestamp(u64::from(FIRST_SECOND) * 1_000_000_000 + index * 1_000_000))
}

#[derive(Debug, Clone, Copy)]
enum Numbers {
    Little,
    Big,
}

impl Numbers {
    fn put16(self, number: u16, out: &mut Vec<u8>) {
        out.extend(match self {
            Self::Little => number.to_le_bytes(),
            Self::Big => number.to_be_bytes(),
        });
    }

    fn put32(self, number: u32, out: &mut Vec<u8>) {
        out.extend(match self {
            Self::Little => number.to_le_bytes(),
            Self::Big => number.to_be_bytes(),
        });
    }

    /// A block of a pcapng file.
    fn block(self, block_type: u32, words: &[u32], content: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        let len = (12 + 4 * words.len() + content.len()).next_multiple_of(4);
        self.put32(block_type, &mut block);
        self.put32(len as u32, &mut block);
        for word in words {
            self.put32(*word, &mut block);
        }
        block.extend(content);
        block.resize(len - 4, 0);
        self.put32(len as u32, &mut block);
        block
    }

    /// A section's header.
    fn section(self) -> Vec<u8> {
        let mut version = Vec::new();
        self.put16(1, &mut version);
        self.put16(0, &mut version);
        version.extend([0xff; 8]);
        self.block(0x0a0d_0d0a, &[0x1a2b_3c4d], &version)
    }

    /// An interface's description, with options.
    fn interface(self, link: u16, snaplen: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut content = Vec::new();
        self.put16(link, &mut content);
        self.put16(0, &mut content);
        self.put32(snaplen, &mut content);
        for (code, value) in options {
            self.put16(*code, &mut content);
            self.put16(value.len() as u16, &mut content);
            content.extend(*value);
            content.resize(content.len().next_multiple_of(4), 0);
        }
        if !options.is_empty() {
            content.extend([0; 4]);
        }
        self.block(1, &[], &content)
    }

    fn enhanced(self, interface: u32, time: u64, packet: &[u8]) -> Vec<u8> {
        let len = packet.len() as u32;
        self.block(6, &[interface, (time >> 32) as u32, time as u32, len, len], packet)
    }
}

#[test]
fn a_connection_is_read_from_every_form_of_pcap() {
    for numbers in [Numbers::Little, Numbers::Big] {
        for magic in [0xa1b2_c3d4, 0xa1b2_3c4d, 0xa1b2_cd34] {
            if let (Numbers::Big, 0xa1b2_cd34) = (numbers, magic) {
                // The library knows the modified form in one order only, and no system that wrote it has the other.
                continue;
            }
            let file = pcap_of(numbers, magic, 101, exchange(40000).segments.iter().map(Segment::ipv4));
            let seen = read(&file);
            assert_eq!(told(&seen), EXCHANGE, "{numbers:?} {magic:x}");
            assert_eq!(bytes_of(&seen), BTreeMap::from([((1, true), request()), ((1, false), answer())]));
            // The SYN is the first packet, the request the fourth.
            assert_eq!([seen[0].time, seen[1].time], [moment(0), moment(3)]);
            let header = if magic == 0xa1b2_cd34 { 24 } else { 16 };
            assert_eq!([seen[0].offset, seen[1].offset], [24, 24 + 3 * (header + 52)]);
        }
    }
}

#[test]
fn a_connection_is_read_from_every_kind_of_packet_block() {
    let packets: Vec<Vec<u8>> = exchange(40000).segments.iter().map(Segment::ipv4).collect();
    for numbers in [Numbers::Little, Numbers::Big] {
        for block_type in [2, 3, 6] {
            let mut file = [numbers.section(), numbers.interface(101, 0, &[])].concat();
            for (index, packet) in packets.iter().enumerate() {
                let time = u64::from(FIRST_SECOND) * 1_000_000 + 1000 * index as u64;
                let len = packet.len() as u32;
                file.extend(match block_type {
                    2 => {
                        // The interface's number and how many packets were lost share a word.
                        let (high, low) = ((time >> 32) as u32, time as u32);
                        numbers.block(2, &[0, high, low, len, len], packet)
                    }
                    3 => numbers.block(3, &[len], packet),
                    _ => numbers.enhanced(0, time, packet),
                });
            }
            let seen = read(&file);
            assert_eq!(told(&seen), EXCHANGE, "{numbers:?} {block_type}");
            assert_eq!(seen[1].time, if block_type == 3 { None } else { moment(3) });
        }
    }
}

#[test]
fn a_connection_is_read_from_every_link_and_both_versions_of_ip() {
    fn behind(header: &[u8], packet: Vec<u8>) -> Vec<u8> {
        [header, &packet].concat()
    }
    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let ethernet = |rest: &[u8]| [&MACS[..], rest].concat();
    let cooked = |protocol: [u8; 2]| [&[0, 0, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0][..], &protocol].concat();
    let cooked2 = |protocol: [u8; 2]| [&protocol[..], &[0, 0, 0, 0, 0, 1, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    let table: Vec<(u32, Vec<u8>, bool)> = vec![
        (0, vec![2, 0, 0, 0], false),
        (0, vec![0, 0, 0, 2], false),
        (0, vec![24, 0, 0, 0], true),
        (108, vec![0, 0, 0, 2], false),
        (1, ethernet(&[8, 0]), false),
        (1, ethernet(&[0x86, 0xdd]), true),
        (1, ethernet(&[0x81, 0, 0, 5, 8, 0]), false),
        (1, ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x86, 0xdd]), true),
        // The upper half of a pcap file's link type says that frames end with a checksum.
        (0x2400_0001, ethernet(&[8, 0]), false),
        (113, cooked([8, 0]), false),
        (113, cooked([0x86, 0xdd]), true),
        (276, cooked2([8, 0]), false),
        (276, cooked2([0x81, 0]).into_iter().chain([0, 5, 0x86, 0xdd]).collect(), true),
        (101, vec![], true),
        (12, vec![], false),
        (228, vec![], false),
        (229, vec![], true),
    ];
    for (link, header, six) in table {
        let packet = |segment: &Segment| {
            let ip = if six { segment.ipv6() } else { segment.ipv4() };
            let mut packet = behind(&header, ip);
            if link == 1 {
                // What Ethernet fills short frames up with.
                packet.extend([0; 6]);
            }
            packet
        };
        let file = pcap_of(Numbers::Little, 0xa1b2_c3d4, link, exchange(40000).segments.iter().map(packet));
        let seen = read(&file);
        let expected = EXCHANGE.map(|line| {
            if six {
                line.replace("10.0.0.", "[fd00::").replace(":40000", "]:40000").replace(":9000", "]:9000")
            } else {
                line.to_owned()
            }
        });
        assert_eq!(told(&seen), expected, "{link} {header:x?}");
        assert_eq!(bytes_of(&seen), BTreeMap::from([((1, true), request()), ((1, false), answer())]));
    }
}

#[test]
fn interfaces_have_links_and_clocks_of_their_own() {
    let talk = exchange(40000);
    let packets: Vec<Vec<u8>> = talk.segments.iter().map(Segment::ipv4).collect();
    for numbers in [Numbers::Little, Numbers::Big] {
        let hour = match numbers {
            Numbers::Little => 3600_i64.to_le_bytes(),
            Numbers::Big => 3600_i64.to_be_bytes(),
        };
        let interfaces = [
            numbers.interface(101, 0, &[(2, b"lo"), (9, &[9])]),
            // An hour is added to its clock, whose unit is a 1024th of a second.
            numbers.interface(101, 0, &[(9, &[0x80 | 10]), (14, &hour)]),
            numbers.interface(147, 0, &[]),
            numbers.interface(113, 0, &[(9, &[0])]),
            numbers.interface(101, 0, &[(9, &[40])]),
        ];
        let mut file = numbers.section();
        file.extend(interfaces.concat());
        file.extend(numbers.enhanced(0, 1_700_000_000_123_456_789, &packets[0]));
        file.extend(numbers.enhanced(1, 1_700_000_000 * 1024 + 512, &packets[1]));
        file.extend(numbers.enhanced(2, 0, b"something else"));
        file.extend(numbers.enhanced(4, u64::MAX, &packets[2]));
        let cooked: Vec<u8> = [&[0; 14][..], &[8, 0], &packets[3]].concat();
        file.extend(numbers.enhanced(3, 1_700_000_002, &cooked));
        file.extend(numbers.enhanced(1, 1_700_000_000 * 1024 + 513, &packets[5]));
        let (seen, error, left_out) = read_all(&file, Settings::default());
        assert_eq!(error, None);
        assert_eq!(told(&seen), &EXCHANGE[..3]);
        let times: Vec<u64> = seen.iter().map(|seen| seen.time.unwrap().0).collect();
        let later = (1_700_000_000 + 3600) * 1_000_000_000 + 513 * 1_000_000_000 / 1024;
        assert_eq!(times, [1_700_000_000_123_456_789, 1_700_000_002_000_000_000, later]);
        assert_eq!(left_out.others, 1);
    }
}

#[test]
fn sections_begin_anew_and_unknown_blocks_are_passed_over() {
    let packets: Vec<Vec<u8>> = exchange(40000).segments.iter().map(Segment::ipv4).collect();
    let (little, big) = (Numbers::Little, Numbers::Big);
    let mut file = [little.section(), little.interface(101, 0, &[])].concat();
    for packet in &packets[..4] {
        file.extend(little.enhanced(0, 0, packet));
        // Name resolution, and one that is longer than any packet may be.
        file.extend(little.block(4, &[], b"\0\0\0\0"));
        file.extend(little.block(0x1234_5678, &[], &vec![0xaa; 400_000]));
    }
    file.extend([big.section(), big.block(0x0bad, &[0], b""), big.interface(101, 0, &[])].concat());
    for packet in &packets[4..] {
        file.extend(big.enhanced(0, 0, packet));
    }
    assert_eq!(told(&read(&file)), EXCHANGE);

    // What is passed over is not held.
    let mut reader = CaptureReader::default();
    for piece in file.chunks(1000) {
        reader.receive(piece);
        while reader.next().unwrap().is_some() {}
        assert!(reader.held() < 4000, "{}", reader.held());
    }
}

#[test]
fn a_simple_packet_block_is_as_long_as_was_kept_of_it() {
    let numbers = Numbers::Little;
    let mut talk = Talk::open(40000);
    talk.send(WEB, &request()).acknowledge(APP).send(APP, &answer());
    let mut file = [numbers.section(), numbers.interface(101, 81, &[])].concat();
    for segment in &talk.segments {
        let packet = segment.ipv4();
        file.extend(numbers.block(3, &[packet.len() as u32], &packet[..packet.len().min(81)]));
    }
    let seen = read(&file);
    let expected =
        ["1 opened 10.0.0.1:40000 to 10.0.0.2:9000", "1 > 29 bytes", "1 > gap of 31", "1 < 29 bytes", "1 < gap of 43"];
    assert_eq!(told(&seen), expected);
}

#[test]
fn what_is_broken_is_told_with_its_place_after_all_before_it() {
    let good = exchange(40000).capture();
    let numbers = Numbers::Little;
    let ng = |blocks: &[Vec<u8>]| [numbers.section(), numbers.interface(101, 0, &[]), blocks.concat()].concat();
    let packet = exchange(40000).segments[3].ipv4();
    let mut without_end = numbers.enhanced(0, 0, &packet);
    *without_end.last_mut().unwrap() = 1;
    let mut section_of_two = numbers.section();
    section_of_two[12] = 2;
    let mut no_order = numbers.section();
    no_order[8] = 0;
    let mut overlong = numbers.enhanced(0, 0, &packet);
    overlong[20..24].copy_from_slice(&[0xff; 4]);
    let table: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "at byte 0: expected the first 4 bytes of a capture, got 0 bytes and the end of the file"),
        (
            b"\x1f\x8b\x08\0".to_vec(),
            "at byte 0: expected a pcap or pcapng capture, got a file that begins with 1f8b0800",
        ),
        (good[..20].to_vec(), "at byte 0: expected a pcap header of 24 bytes, got 20 bytes and the end of the file"),
        (
            pcap_of(numbers, 0xa1b2_c3d4, 105, []),
            "at byte 20: expected a capture of Ethernet (link type 1), Linux cooked (113, 276), raw IP (101, 228, 229) or loopback (0, 108), got link type 105",
        ),
        (
            [&good[..], &[0; 15]].concat(),
            "at byte 836: expected a packet's header of 16 bytes, got 15 bytes and the end of the file",
        ),
        (
            [&good[..], &[0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 1, 2]].concat(),
            "at byte 836: expected a packet of 9 bytes, got 2 bytes and the end of the file",
        ),
        (
            [&good[..], &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 9, 0, 0, 0]].concat(),
            "at byte 844: expected a packet of at most 262144 bytes, got a packet of 262145 bytes",
        ),
        (section_of_two, "at byte 12: expected a section of pcapng 1, got version 2.0"),
        (no_order, "at byte 8: expected a section's byte-order magic, 1a2b3c4d or 4d3c2b1a, got 003c2b1a"),
        (
            ng(&[numbers.block(9, &[], b"")[..6].to_vec()]),
            "at byte 48: expected a block's header of 8 bytes, got 6 bytes and the end of the file",
        ),
        (
            ng(&[numbers.block(9, &[1, 2], b"")[..15].to_vec()]),
            "at byte 63: expected 5 more bytes of a block, got 0 bytes and the end of the file",
        ),
        (
            ng(&[numbers.enhanced(0, 0, &packet)[..50].to_vec()]),
            "at byte 48: expected a block of 144 bytes, got 50 bytes and the end of the file",
        ),
        (ng(&[without_end]), "at byte 188: expected the block's length again, 144, got 16777360"),
        (
            ng(&[vec![6, 0, 0, 0, 14, 0, 0, 0]]),
            "at byte 52: expected a block of at least 12 bytes in words of 4, got a block of 14 bytes",
        ),
        (
            ng(&[vec![6, 0, 0, 0, 0, 0, 0, 1]]),
            "at byte 52: expected a packet of at most 262144 bytes, got a block of 16777216 bytes",
        ),
        (
            ng(&[numbers.enhanced(1, 0, &packet)]),
            "at byte 56: expected the number of an interface, of which 1 were described, got 1",
        ),
        (ng(&[overlong]), "at byte 48: expected an enhanced packet block, got one whose lengths do not fit each other"),
        (
            ng(&[numbers.block(2, &[0, 0, 0, 9, 9], b"12345678")]),
            "at byte 68: expected a packet of at most 8 bytes, which the block has room for, got 9",
        ),
        (ng(&[numbers.block(2, &[0, 0, 0, 9], b"")]), "at byte 48: expected a packet block, got one of 28 bytes"),
    ];
    for (file, message) in table {
        let (seen, error, _) = read_all(&file, Settings::default());
        assert_eq!(error.map(|error| error.to_string()).as_deref(), Some(message));
        if file.starts_with(&good) {
            assert_eq!(told(&seen), EXCHANGE);
        }
    }
}

#[test]
fn captures_are_recognized_by_their_first_bytes() {
    for start in
        [[0xd4, 0xc3, 0xb2, 0xa1], [0xa1, 0xb2, 0xc3, 0xd4], [0x4d, 0x3c, 0xb2, 0xa1], [0x0a, 0x0d, 0x0d, 0x0a]]
    {
        assert!(CaptureReader::recognizes(&start));
        assert!(!CaptureReader::recognizes(&start[..3]));
    }
    assert!(!CaptureReader::recognizes(&request()));
    assert!(!CaptureReader::recognizes(b"gatespan recording 1\n"));
}

// ---- TCP ----

#[test]
fn segments_come_in_any_order_and_more_than_once() {
    let mut talk = Talk::open(40000);
    talk.send_in(WEB, &request(), 7).acknowledge(APP).send_in(APP, &answer(), 5).acknowledge(WEB).close();
    let expected = BTreeMap::from([((1, true), request()), ((1, false), answer())]);
    assert_eq!(bytes_of(&read(&talk.capture())), expected);

    // 60 bytes in segments of 7 are nine, from the fourth packet on; then an acknowledgement, and 15 segments.
    talk.segments[3..12].reverse();
    talk.segments[13..28].rotate_left(4);
    let late = talk.segments[5].clone();
    talk.segments.insert(20, late);
    let seen = read(&talk.capture());
    assert_eq!(told(&seen), EXCHANGE);
    assert_eq!(bytes_of(&seen), expected);
    // Each piece has the place and the time of its own packet.
    assert_eq!(seen[1].time, moment(11));
    assert_eq!(seen[2].time, moment(10));
}

#[test]
fn overlapping_segments_give_every_byte_once() {
    let mut talk = Talk::open(40000);
    let (first, request) = (talk.next[WEB], request());
    for (start, end) in [(0, 4), (20, 30), (2, 8), (10, 22), (5, 45), (0, 60), (50, 60), (44, 52)] {
        talk.next[WEB] = first.wrapping_add(start as u32);
        talk.send(WEB, &request[start..end]);
    }
    talk.next[WEB] = first.wrapping_add(60);
    talk.acknowledge(APP).send(APP, &answer()).close();
    let seen = read(&talk.capture());
    assert_eq!(told(&seen), EXCHANGE);
    assert_eq!(bytes_of(&seen)[&(1, true)], request);
}

#[test]
fn sequence_numbers_wrap_around() {
    for start in [u32::MAX, u32::MAX - 1, u32::MAX - 30, 0x7fff_fff0] {
        let mut talk = Talk::open_at(40000, [start, start]);
        talk.send_in(WEB, &request(), 9).acknowledge(APP).send_in(APP, &answer(), 9).acknowledge(WEB).close();
        talk.segments[3..10].reverse();
        let seen = read(&talk.capture());
        assert_eq!(told(&seen), EXCHANGE, "{start}");
        assert_eq!(bytes_of(&seen)[&(1, true)], request());
    }
}

#[test]
fn lost_segments_are_gaps_once_the_other_end_has_them() {
    let mut talk = Talk::open(40000);
    talk.send_in(WEB, &request(), 20).acknowledge(APP).send_in(APP, &answer(), 24).acknowledge(WEB).close();
    // The second of three of the request, and the first of three of the answer.
    talk.segments.remove(7);
    talk.segments.remove(4);
    let seen = read(&talk.capture());
    let expected = [
        "1 opened 10.0.0.1:40000 to 10.0.0.2:9000",
        "1 > 20 bytes",
        "1 > gap of 20",
        "1 > 20 bytes",
        "1 < gap of 24",
        "1 < 48 bytes",
        "1 < ended",
        "1 > ended",
    ];
    assert_eq!(told(&seen), expected);
}

#[test]
fn an_answer_says_that_its_question_has_passed() {
    let mut talk = Talk::open(40000);
    talk.send(WEB, &request()).send(APP, &answer()).send(WEB, &request()).send(APP, &answer()).close();
    // The second request, which nothing follows: its answer acknowledges it.
    talk.segments.remove(5);
    let expected = [
        "1 opened 10.0.0.1:40000 to 10.0.0.2:9000",
        "1 > 60 bytes",
        "1 < 72 bytes",
        "1 > gap of 60",
        "1 < 72 bytes",
        "1 < ended",
        "1 > ended",
    ];
    assert_eq!(told(&read(&talk.capture())), expected);
}

#[test]
fn a_mere_acknowledgement_may_come_before_what_it_acknowledges() {
    let mut talk = exchange(40000);
    talk.segments.swap(3, 4);
    assert_eq!(told(&read(&talk.capture())), EXCHANGE);
}

#[test]
fn acknowledgements_may_stand_before_segments_that_come_in_another_order() {
    let mut talk = Talk::open(40000);
    for piece in request().chunks(10) {
        talk.send(WEB, piece).acknowledge(APP);
    }
    talk.send(APP, &answer()).close();
    // Six segments, each with its acknowledgement behind it.
    for (one, other) in [(3, 9), (5, 7), (11, 13)] {
        talk.segments.swap(one, other);
    }
    let seen = read(&talk.capture());
    assert_eq!(told(&seen), EXCHANGE);
    assert_eq!(bytes_of(&seen)[&(1, true)], request());
}

#[test]
fn a_lost_segment_is_not_waited_for_until_the_end() {
    let mut talk = Talk::open(40000);
    talk.send(WEB, &request()).acknowledge(APP);
    for _ in 0..40 {
        talk.send(WEB, &[b'x'; 100]).acknowledge(APP);
    }
    talk.segments.remove(5);
    let file = talk.capture();
    let (mut reader, mut gap) = (CaptureReader::default(), None);
    for (index, byte) in file.iter().enumerate() {
        reader.receive(&[*byte]);
        while let Some(next) = reader.next().unwrap() {
            if let What::Gap { direction: ToApplication, len } = next.what {
                gap = Some((len, index));
            }
        }
    }
    // 17 of the 39 segments behind it have come.
    let (len, index) = gap.expect("it is told before the file ends");
    assert_eq!(len, Some(100));
    assert!((file.len() * 4 / 10..file.len() * 5 / 10).contains(&index), "{index} of {}", file.len());
    assert_eq!(bytes_of(&read(&talk.capture()))[&(1, true)].len(), 60 + 39 * 100);
}

#[test]
fn what_never_comes_is_a_gap_at_the_end() {
    let mut talk = Talk::open(40000);
    talk.send_in(WEB, &request(), 20);
    talk.segments.remove(4);
    let expected = ["1 opened 10.0.0.1:40000 to 10.0.0.2:9000", "1 > 20 bytes", "1 > gap of 20", "1 > 20 bytes"];
    assert_eq!(told(&read(&talk.capture())), expected);

    // The last segment before a FIN, and the FIN of the other end, which its acknowledgement alone shows.
    let mut talk = Talk::open(40000);
    talk.send_in(WEB, &request(), 20).segment(WEB, FIN | ACK, b"").segment(APP, FIN | ACK, b"").acknowledge(WEB);
    talk.segments.remove(7);
    talk.segments.remove(5);
    let expected =
        ["1 opened 10.0.0.1:40000 to 10.0.0.2:9000", "1 > 40 bytes", "1 > gap of 20", "1 > ended", "1 < ended"];
    assert_eq!(told(&read(&talk.capture())), expected);
}

#[test]
fn what_waits_for_lost_bytes_has_a_maximum() {
    let body = vec![b'x'; 60_000];
    let mut talk = Talk::open(40000);
    talk.send(WEB, &request());
    talk.send_in(WEB, &body, 1000);
    // Without acknowledgements, so that nothing but the maximum can tell.
    talk.segments.remove(4);
    let file = talk.capture();
    let settings = Settings { max_waiting: 20_000, ..Settings::default() };
    for settings in [settings, Settings { max_waiting_in_all: 20_000, ..Settings::default() }] {
        let (mut reader, mut seen) = (CaptureReader::new(settings), Vec::new());
        for piece in file.chunks(500) {
            reader.receive(piece);
            while let Some(next) = reader.next().unwrap() {
                seen.push(next);
            }
            assert!(reader.held() < 20_000 + 1000 + 500 + 56, "{}", reader.held());
        }
        let expected =
            ["1 opened 10.0.0.1:40000 to 10.0.0.2:9000", "1 > 60 bytes", "1 > gap of 1000", "1 > 59000 bytes"];
        assert_eq!(told(&seen), expected);
    }
    // The defaults hold all of it until the end.
    let mut reader = CaptureReader::default();
    reader.receive(&file);
    while reader.next().unwrap().is_some() {}
    assert!(reader.held() > 58_000);
}

#[test]
fn many_small_pieces_cost_more_than_their_bytes() {
    let mut talk = Talk::open(40000);
    talk.send(WEB, &request());
    let first = talk.next[WEB];
    // Every other byte.
    for index in 0..10_000 {
        talk.next[WEB] = first + 2 * index + 1;
        talk.send(WEB, b"x");
    }
    let settings = Settings { max_waiting: 100_000, ..Settings::default() };
    let (seen, _, _) = read_all(&talk.capture(), settings.clone());
    assert_eq!(bytes_of(&seen)[&(1, true)].len(), request().len() + 10_000);
    let mut reader = CaptureReader::new(settings);
    reader.receive(&talk.capture());
    while reader.next().unwrap().is_some() {}
    assert!(reader.held() <= 100_000);
}

#[test]
fn a_reset_ends_both_directions() {
    for (who, name) in [(WEB, "web server"), (APP, "application")] {
        let mut talk = Talk::open(40000);
        talk.send(WEB, &request()).send_in(APP, &answer(), 30).segment(who, RST | ACK, b"a word");
        talk.send(WEB, b"too late");
        // The first of three of the answer.
        talk.segments.remove(4);
        let (seen, _, left_out) = read_all(&talk.capture(), Settings::default());
        let expected = [
            "1 opened 10.0.0.1:40000 to 10.0.0.2:9000".to_owned(),
            "1 > 60 bytes".to_owned(),
            "1 < gap of 30".to_owned(),
            "1 < 42 bytes".to_owned(),
            format!("1 broken: reset by the {name}"),
        ];
        assert_eq!(told(&seen), expected);
        assert_eq!(left_out.late_packets, 1);
    }
}

#[test]
fn a_port_may_be_used_again() {
    let mut first = exchange(40000);
    let mut second = Talk::open_at(40000, [77_000, 88_000]);
    second.send(WEB, &request()).send(APP, &answer()).close();
    // A SYN that is sent twice begins one connection.
    second.segments.insert(1, second.segments[0].clone());
    let both = |first: &Talk, second: &Talk| {
        let all = first.segments.iter().chain(&second.segments);
        told(&read(&pcap(all.map(Segment::ipv4))))
    };
    let again = EXCHANGE.map(|line| line.replacen('1', "2", 1));
    assert_eq!(both(&first, &second), [&EXCHANGE.map(str::to_owned)[..], &again].concat());

    // Without a trace of the first one's end.
    first.segments.truncate(7);
    assert_eq!(
        both(&first, &second),
        [&EXCHANGE[..3].iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()[..], &again].concat()
    );
}

#[test]
fn connections_are_told_apart_and_numbered_as_they_appear() {
    let (one, two) = (exchange(40000), exchange(40001));
    let mixed = one.segments.iter().zip(&two.segments).flat_map(|(one, two)| [two, one]);
    let seen = read(&pcap(mixed.map(Segment::ipv4)));
    assert_eq!(bytes_of(&seen).len(), 4);
    let opened: Vec<String> = told(&seen).into_iter().filter(|line| line.contains("opened")).collect();
    assert_eq!(opened, ["1 opened 10.0.0.1:40001 to 10.0.0.2:9000", "2 opened 10.0.0.1:40000 to 10.0.0.2:9000"]);
}

#[test]
fn the_number_of_open_connections_has_a_maximum() {
    let mut segments = Vec::new();
    // Ten are open at the same time, and each is used once more when the last is open.
    let talks: Vec<Talk> = (0..10)
        .map(|n| {
            let mut talk = Talk::open(40000 + n);
            talk.send(WEB, &request()).send(APP, &answer());
            segments.append(&mut talk.segments);
            talk
        })
        .collect();
    for mut talk in talks {
        talk.send(WEB, &request()).send(APP, &answer()).close();
        segments.extend(talk.segments);
    }
    let file = pcap(segments.iter().map(Segment::ipv4));
    let opened = |max_connections| {
        let (seen, error, left_out) = read_all(&file, Settings { max_connections, ..Settings::default() });
        assert_eq!(error, None);
        let whole = bytes_of(&seen).values().filter(|bytes| [120, 144].contains(&bytes.len())).count();
        (told(&seen).iter().filter(|line| line.contains("opened")).count(), whole, left_out.given_up)
    };
    assert_eq!(opened(10), (10, 20, 0));
    assert_eq!(opened(Settings::default().max_connections), (10, 20, 0));
    // One too many: the first is given up, and the second for what is left of the first. Then those that are over make room.
    assert_eq!(opened(9), (12, 16, 2));
    assert_eq!(opened(1), (20, 0, 10));
}

#[test]
fn packets_that_were_not_kept_whole_are_gaps_of_known_length() {
    let mut talk = Talk::open(40000);
    talk.send(WEB, &request()).acknowledge(APP).send_in(APP, &answer(), 36).acknowledge(WEB).close();
    let packets = talk.segments.iter().map(|segment| {
        let mut packet = segment.ipv4();
        packet.truncate(52 + 30);
        packet
    });
    let expected = [
        "1 opened 10.0.0.1:40000 to 10.0.0.2:9000",
        "1 > 30 bytes",
        "1 > gap of 30",
        "1 < 30 bytes",
        "1 < gap of 6",
        "1 < 30 bytes",
        "1 < gap of 6",
        "1 < ended",
        "1 > ended",
    ];
    assert_eq!(told(&read(&pcap(packets))), expected);

    // So short that not even TCP's header is whole.
    let (seen, error, left_out) =
        read_all(&pcap(talk.segments.iter().map(|segment| segment.ipv4()[..40].to_vec())), Settings::default());
    assert_eq!((seen.len(), error, left_out.unreadable), (0, None, talk.segments.len() as u64));
}

#[test]
fn packets_longer_than_ip_can_say_are_read_whole() {
    let talk = exchange(40000);
    let packets = talk.segments.iter().map(|segment| {
        let mut packet = segment.ipv4();
        packet[2..4].fill(0);
        packet
    });
    assert_eq!(told(&read(&pcap(packets))), EXCHANGE);
}

#[test]
fn fragments_are_counted_and_leave_a_gap() {
    let mut talk = Talk::open(40000);
    talk.send(WEB, &request()).send(APP, &answer()).send(WEB, &request()).send(APP, &answer()).close();
    let fragments = |v6: bool| {
        talk.segments.iter().enumerate().flat_map(move |(index, segment)| {
            let packet = if v6 { segment.ipv6() } else { segment.ipv4() };
            if index != 5 {
                return vec![packet];
            }
            let (header, mut packets) = (if v6 { 56 } else { 20 }, Vec::new());
            let payload = &packet[header..];
            for (start, end) in [(0, 48), (48, payload.len())] {
                let more = u8::from(end < payload.len());
                let mut fragment = packet[..header].to_vec();
                if v6 {
                    fragment[48] = 44;
                    fragment.extend([6, 0, 0, start as u8 | more, 0, 0, 0, 9]);
                    fragment[5] = (16 + 8 + end - start) as u8;
                } else {
                    (fragment[6], fragment[7], fragment[3]) = (more << 5, start as u8 / 8, (20 + end - start) as u8);
                }
                fragment.extend(&payload[start..end]);
                packets.push(fragment);
            }
            packets
        })
    };
    for v6 in [false, true] {
        let (seen, error, left_out) = read_all(&pcap(fragments(v6)), Settings::default());
        assert_eq!((error, left_out.fragments), (None, 2), "{v6}");
        assert_eq!(told(&seen)[2..5], ["1 < 72 bytes", "1 > gap of 60", "1 < 72 bytes"]);
    }
}

#[test]
fn numbers_that_no_window_reaches_are_left_out() {
    let mut talk = Talk::open(40000);
    talk.send(WEB, &request());
    let next = talk.next[WEB];
    for far in [0x6000_0000, 0xa000_0000] {
        talk.next[WEB] = next.wrapping_add(far);
        talk.send(WEB, b"far away");
    }
    talk.next[WEB] = next;
    talk.send(APP, &answer()).close();
    let (seen, _, left_out) = read_all(&talk.capture(), Settings::default());
    assert_eq!(told(&seen), EXCHANGE);
    assert_eq!(left_out.out_of_window, 2);
}

// ---- Which connections are FastCGI ----

#[test]
fn a_connection_whose_beginning_was_not_captured_is_known_by_its_records() {
    let mut talk = Talk::open(40000);
    talk.send(WEB, &request()).acknowledge(APP).send(APP, &answer()).send(WEB, &request()).send(APP, &answer()).close();
    let from = |index: usize| told(&read(&pcap(talk.segments[index..].iter().map(Segment::ipv4))));
    let unseen =
        |rest: &[&str]| -> Vec<String> { EXCHANGE[..1].iter().chain(rest).map(|line| (*line).to_owned()).collect() };
    // The SYN alone is missing: its answer says enough.
    assert_eq!(
        from(1),
        unseen(&["1 > 60 bytes", "1 < 72 bytes", "1 > 60 bytes", "1 < 72 bytes", "1 < ended", "1 > ended"])
    );
    let both = [
        "1 > gap",
        "1 > 60 bytes",
        "1 < gap",
        "1 < 72 bytes",
        "1 > 60 bytes",
        "1 < 72 bytes",
        "1 < ended",
        "1 > ended",
    ];
    assert_eq!(from(2), unseen(&both));
    assert_eq!(from(3), unseen(&both));
    let answer_first = ["1 < gap", "1 < 72 bytes", "1 > gap", "1 > 60 bytes", "1 < 72 bytes", "1 < ended", "1 > ended"];
    assert_eq!(from(5), unseen(&answer_first));
    assert_eq!(from(7), unseen(&["1 < gap", "1 < 72 bytes", "1 < ended", "1 > ended"]));
    // Nothing but FINs.
    assert_eq!(from(8), Vec::<String>::new());
}

#[test]
fn a_connection_is_known_once_a_record_begins_where_a_segment_does() {
    // The upload of a request whose beginning was not captured, in segments of which none begins with a record, and then a request more.
    let mut upload = Vec::new();
    for _ in 0..20 {
        put_record(RecordType::Stdin, RequestId(1), &[b'x'; 8192], 0, &mut upload);
    }
    let mut talk = Talk::open(40000);
    talk.send_in(WEB, &upload, 1448).send(APP, &answer()).send(WEB, &request()).send(APP, &answer());
    let seen = read(&pcap(talk.segments[4..].iter().map(Segment::ipv4)));
    let lines = told(&seen);
    // All of what is held is given, and that more was there is said.
    assert_eq!(lines[..2], ["1 opened 10.0.0.1:40000 to 10.0.0.2:9000", "1 > gap"]);
    let streams = bytes_of(&seen);
    assert!(
        streams[&(1, true)].len() > 100_000 && upload.ends_with(&streams[&(1, true)][..streams[&(1, true)].len() - 60])
    );
    assert_eq!(streams[&(1, false)], [answer(), answer()].concat());
}

#[test]
fn what_is_not_fastcgi_is_left_out() {
    let mut http = Talk::open(40000);
    http.send(WEB, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").send(APP, b"HTTP/1.1 200 OK\r\n\r\n").close();
    let mut greeting = Talk::open(40001);
    greeting.send(APP, &vec![b'G'; 60_000]).send(APP, &vec![b'G'; 60_000]).send(APP, &vec![b'G'; 60_000]);
    let silent = Talk::open(40002);
    // The right version, and no type that there is.
    let mut other = Talk::open(40003);
    other.send(WEB, b"\x01\x0c\0\x01\0\0\0\0");
    let mut short = Talk::open(40004);
    short.send(WEB, &request()[..7]).close();
    let mut reset = Talk::open(40005);
    reset.segment(APP, RST | ACK, b"");
    let fastcgi = exchange(40006);
    let all = [&http, &greeting, &silent, &other, &short, &reset, &fastcgi];
    let file = pcap(all.into_iter().flat_map(|talk| &talk.segments).map(Segment::ipv4));
    let (seen, error, left_out) = read_all(&file, Settings::default());
    assert_eq!(error, None);
    assert_eq!(told(&seen), EXCHANGE.map(|line| line.replace("40000", "40006")));
    assert_eq!(left_out.connections, 6);
    assert_eq!(left_out.to_string(), "6 connections that are not FastCGI");
    assert_eq!(LeftOut::default().to_string(), "nothing");

    // The middle of something else.
    let (seen, _, left_out) = read_all(&pcap(http.segments[3..].iter().map(Segment::ipv4)), Settings::default());
    assert_eq!((seen.len(), left_out.connections), (0, 1));
}

#[test]
fn one_byte_at_a_time_is_fastcgi_too() {
    let mut talk = Talk::open(40000);
    talk.send_in(WEB, &request(), 1).send_in(APP, &answer(), 1).close();
    let seen = read(&talk.capture());
    assert_eq!(told(&seen), EXCHANGE);
    assert_eq!(bytes_of(&seen), BTreeMap::from([((1, true), request()), ((1, false), answer())]));
}

#[test]
fn a_named_port_takes_all_connections_to_it_and_no_others() {
    let mut http = Talk::open(40000);
    http.send(WEB, b"GET / HTTP/1.1\r\n\r\n").close();
    let mut refused = Talk { ports: [40001, 9000], next: [1, 0], segments: Vec::new() };
    refused.segment(WEB, SYN, b"").segment(APP, RST | ACK, b"");
    let mut other = exchange(40002);
    for segment in &mut other.segments {
        segment.ports[APP] = 9001;
    }
    // Its beginning was not captured: the port says which end is the application.
    let mut joined = Talk::open(8999);
    joined.send(APP, b"no record").send(WEB, b"none here");
    joined.segments.drain(..3);
    let all = [&http, &refused, &other, &joined];
    let file = pcap(all.into_iter().flat_map(|talk| &talk.segments).map(Segment::ipv4));
    let (seen, _, left_out) = read_all(&file, Settings { ports: vec![9000], ..Settings::default() });
    let expected = [
        "1 opened 10.0.0.1:40000 to 10.0.0.2:9000",
        "1 > 18 bytes",
        "1 < ended",
        "1 > ended",
        "2 opened 10.0.0.1:40001 to 10.0.0.2:9000",
        "2 broken: reset by the application",
        "3 opened 10.0.0.1:8999 to 10.0.0.2:9000",
        "3 < gap",
        "3 < 9 bytes",
        "3 > gap",
        "3 > 9 bytes",
    ];
    assert_eq!(told(&seen), expected);
    assert_eq!((left_out.other_ports, left_out.connections), (other.segments.len() as u64, 0));
}

// ---- Anything ----

#[test]
fn a_file_cut_anywhere_gives_what_was_before() {
    let talk = exchange(40000);
    cut_everywhere(&talk.capture());
    let numbers = Numbers::Big;
    let mut file =
        [numbers.section(), numbers.block(77, &[1, 2, 3], b""), numbers.interface(101, 0, &[(9, &[9])])].concat();
    for segment in &talk.segments {
        file.extend(numbers.enhanced(0, 5, &segment.ipv4()));
        file.extend(numbers.block(5, &[0, 0, 0], b""));
    }
    cut_everywhere(&file);
}

/// A stream in pieces that overlap, come more than once and in any order.
fn pieces(len: usize) -> impl Strategy<Value = Vec<(usize, usize)>> {
    let cover = vec(1..200_usize, 1..40).prop_map(move |lens| {
        let mut start = 0;
        let mut pieces = Vec::new();
        for step in lens.into_iter().cycle() {
            let end = (start + step).min(len);
            pieces.push((start, end));
            start = end;
            if start == len {
                return pieces;
            }
        }
        pieces
    });
    let more = vec((0..len, 0..len).prop_map(|(a, b)| (a.min(b), a.max(b))), 0..20);
    (cover, more).prop_map(|(cover, more)| [cover, more].concat()).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn segments_in_any_order_give_the_same_bytes(pieces in pieces(60 + 3000), first: [u32; 2], chunk in 1..5000_usize) {
        let mut upload = request();
        upload.extend((0..3000).map(|n| n as u8));
        let mut talk = Talk::open_at(40000, first);
        let start = talk.next[WEB];
        for (from, to) in pieces {
            talk.next[WEB] = start.wrapping_add(from as u32);
            talk.send(WEB, &upload[from..to]);
        }
        talk.next[WEB] = start.wrapping_add(upload.len() as u32);
        talk.acknowledge(APP).send(APP, &answer()).close();
        let (mut reader, mut seen) = (CaptureReader::default(), Vec::new());
        for piece in talk.capture().chunks(chunk) {
            reader.receive(piece);
            prop_assert_eq!(take(&mut reader, &mut seen), None);
        }
        reader.end();
        prop_assert_eq!(take(&mut reader, &mut seen), None);
        prop_assert_eq!(told(&seen), EXCHANGE.map(|line| line.replace("60", "3060")));
        prop_assert_eq!(&bytes_of(&seen)[&(1, true)], &upload);
    }

    /// Whatever is lost, what is given and what is missing are together what passed.
    #[test]
    fn bytes_and_gaps_are_together_what_passed(lost in vec(any::<bool>(), 40), len in 1..40_usize) {
        let mut talk = Talk::open(40000);
        talk.send_in(WEB, &request(), len).send_in(APP, &answer(), len).send_in(WEB, &request(), len).close();
        let kept = talk.segments.iter().enumerate().filter(|(index, segment)| {
            *index < 4 || segment.payload.is_empty() || !lost[index % lost.len()]
        });
        let seen = read(&pcap(kept.map(|(_, segment)| segment.ipv4())));
        let passed = |to: Direction| -> u64 {
            seen.iter().map(|seen| match &seen.what {
                What::Bytes { direction, bytes } if *direction == to => bytes.len() as u64,
                What::Gap { direction, len } if *direction == to => len.unwrap(),
                _ => 0,
            }).sum()
        };
        if !seen.is_empty() {
            prop_assert_eq!([passed(ToApplication), passed(ToWebServer)], [120, 72]);
        }
    }

    #[test]
    fn no_bytes_panic_and_none_are_held_beyond_the_window(
        start in prop::sample::select(vec![
            pcap([]), pcap_of(Numbers::Big, 0xa1b2_3c4d, 1, []), pcap_of(Numbers::Little, 0xa1b2_c3d4, 276, []),
            [Numbers::Little.section(), Numbers::Little.interface(1, 0, &[])].concat(), Numbers::Big.section(), vec![],
        ]),
        bytes in vec(prop_oneof![any::<u8>(), Just(0), Just(1), Just(6)], 0..2000),
    ) {
        any_bytes(&[start, bytes].concat());
    }

    /// Blocks whose own lengths are right, with anything in them.
    #[test]
    fn no_blocks_panic(big: bool, blocks in vec((0..8_u32, vec(prop_oneof![any::<u8>(), Just(0)], 0..80)), 0..20)) {
        let numbers = if big { Numbers::Big } else { Numbers::Little };
        let blocks = blocks.iter().map(|(block_type, content)| numbers.block(*block_type, &[], content));
        let start = [numbers.section(), numbers.interface(1, 0, &[])];
        any_bytes(&start.into_iter().chain(blocks).collect::<Vec<_>>().concat());
    }

    #[test]
    fn a_capture_with_other_bytes_in_it_does_not_panic(
        ng: bool, changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..30),
    ) {
        let talk = exchange(40000);
        let mut file = if ng {
            let numbers = Numbers::Little;
            let packets = talk.segments.iter().map(|segment| numbers.enhanced(0, 9, &segment.ipv6()));
            let start = [numbers.section(), numbers.interface(101, 0, &[(9, &[9])])];
            start.into_iter().chain(packets).collect::<Vec<_>>().concat()
        } else {
            talk.capture()
        };
        for (index, byte) in changes {
            let index = index.index(file.len());
            file[index] = byte;
        }
        any_bytes(&file);
    }

    /// Segments of any numbers, on few connections.
    #[test]
    fn no_segments_panic_and_none_are_held_beyond_the_window(
        segments in vec((0..2_usize, 0..3_u16, any::<u32>(), any::<u32>(), any::<u8>(), 0..300_usize, 0..60_usize), 0..200),
        near: bool,
    ) {
        let packets = segments.into_iter().map(|(from, port, sequence, acknowledged, flags, len, cut)| {
            let (sequence, acknowledged) = if near { (sequence % 3000, acknowledged % 3000) } else { (sequence, acknowledged) };
            let payload = request().into_iter().cycle().take(len).collect();
            let flags = if near { flags & (ACK | FIN | SYN) } else { flags };
            let mut packet = Segment { from, ports: [40000 + port, 9000], sequence, acknowledged, flags, payload }.ipv4();
            packet.truncate(packet.len().saturating_sub(cut));
            packet
        });
        any_bytes(&pcap(packets));
    }
}

fn any_bytes(file: &[u8]) {
    let settings = Settings {
        max_packet_len: 1000,
        max_waiting: 2000,
        max_waiting_in_all: 3000,
        max_connections: 2,
        ..Settings::default()
    };
    // A packet or a block, what comes with it, and what waits.
    let window = 1000 + 64 * 1024 + 100 + 3000 + 2 * 2000;
    for ports in [vec![], vec![9000]] {
        let mut reader = CaptureReader::new(Settings { ports, ..settings.clone() });
        for piece in file.chunks(100) {
            reader.receive(piece);
            while let Ok(Some(_)) = reader.next() {}
            assert!(reader.held() <= window, "{}", reader.held());
        }
        reader.end();
        while let Ok(Some(_)) = reader.next() {}
        assert!(reader.next().is_err() || reader.held() == 0);
    }
}
