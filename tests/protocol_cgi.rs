//! Response heads from outside: cut at every byte, with every kind of line end, over every limit, and made up at random.

use bytes::{Bytes, BytesMut};
use gatespan::protocol::{
    Pairs,
    cgi::{
        FieldError, HeadError, Limits, MetaVariables, ResponseHead, ResponseHeadDecoder, ResponseKind, Status,
        encode_head, is_forbidden, is_nph, variable_name,
    },
};
use proptest::{collection::vec, option, prelude::*};

/// The bytes, the status and its reason, and the fields.
type Fixture = (&'static str, Option<(u16, &'static str)>, &'static [(&'static str, &'static str)]);

/// Heads as scripts send them, with what they mean. Line ends are LF here.
const FIXTURES: &[Fixture] = &[
    ("Content-Type: text/plain\n\n", None, &[("Content-Type", "text/plain")]),
    (
        "Status: 200 OK\nContent-Type: text/html; charset=utf-8\n\n",
        Some((200, "OK")),
        &[("Content-Type", "text/html; charset=utf-8")],
    ),
    ("Status: 404\n\n", Some((404, "")), &[]),
    (
        "content-type:text/plain\nsTaTuS:\t599  Quite odd \n\n",
        Some((599, "Quite odd")),
        &[("content-type", "text/plain")],
    ),
    ("Location: /other?a=b\n\n", None, &[("Location", "/other?a=b")]),
    (
        "Status: 302 Found\nLocation: https://host:8443/a:b#c\nContent-Type: a/b\n\n",
        Some((302, "Found")),
        &[("Location", "https://host:8443/a:b#c"), ("Content-Type", "a/b")],
    ),
    (
        "Set-Cookie: a=1; Path=/\nX: \t x \t \nSet-Cookie: b=2\nSET-COOKIE: a=1; Path=/\nEmpty:\n\n",
        None,
        &[
            ("Set-Cookie", "a=1; Path=/"),
            ("X", "x"),
            ("Set-Cookie", "b=2"),
            ("SET-COOKIE", "a=1; Path=/"),
            ("Empty", ""),
        ],
    ),
    (
        "Content-Length: 12\nContent-Length: 12\nX-Text: \u{e4} \"b: c\"\n\n",
        None,
        &[("Content-Length", "12"), ("X-Text", "\u{e4} \"b: c\"")],
    ),
    (
        "!#$%&'*+-.^_`|~: token\nX-Control: a\u{1}\u{7f}\n\n",
        None,
        &[("!#$%&'*+-.^_`|~", "token"), ("X-Control", "a\u{1}\u{7f}")],
    ),
];

/// Heads that are refused.
const REFUSED: &[&[u8]] = &[
    b"\n",
    b"\r\n\r\n",
    b"Status:\n\n",
    b"no colon\n\n",
    b"A: a\nno colon\n\n",
    b": a\n\n",
    b"A : a\n\n",
    b"A\x00: a\n\n",
    b"A: a\x00\n\n",
    b"A: a\rB: b\n\n",
    b"A: a\n b\n\n",
    b"Status: 2\n\n",
    b"Status: 200\nStatus: 404\n\n",
    b"Content-Length: 1\nContent-Length: 2\n\n",
    b"Content-Length: 0x1\n\n",
    b"Transfer-Encoding: chunked\n\n",
    b"HTTP/1.1 200 OK\nA: a\n\n",
];

fn meaning((_, status, headers): &Fixture) -> ResponseHead {
    let status = status.map(|(code, reason)| Status { code, reason: Bytes::from_static(reason.as_bytes()) });
    ResponseHead { status, headers: headers.iter().copied().collect() }
}

/// Feeds the pieces, and gives the head and what follows it.
fn feed<'a>(
    mut decoder: ResponseHeadDecoder,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<(ResponseHead, BytesMut)>, HeadError> {
    let mut buffer = BytesMut::new();
    let mut head = None;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if head.is_none() {
            head = decoder.decode(&mut buffer)?;
        }
    }
    Ok(head.map(|head| (head, buffer)))
}

#[test]
fn heads_may_end_their_lines_in_lf_crlf_or_both() {
    for fixture in FIXTURES {
        let lines = fixture.0.matches('\n').count() as u32;
        // Each line on its own ends in LF or CRLF.
        for ends in 0..2_u32.pow(lines) {
            let mut bytes = String::new();
            for (at, line) in fixture.0.split_terminator('\n').enumerate() {
                bytes.push_str(line);
                bytes.push_str(if ends >> at & 1 == 0 { "\n" } else { "\r\n" });
            }
            let (head, consumed) = ResponseHead::decode(bytes.as_bytes(), &Limits::default()).unwrap().unwrap();
            assert_eq!(head, meaning(fixture), "{bytes:?}");
            assert_eq!(consumed, bytes.len());
        }
    }
}

#[test]
fn a_head_cut_at_any_byte_is_incomplete_and_never_wrong() {
    for fixture in FIXTURES {
        for bytes in [fixture.0.to_owned(), fixture.0.replace('\n', "\r\n")] {
            for cut in 0..bytes.len() {
                let start = &bytes.as_bytes()[..cut];
                assert_eq!(ResponseHead::decode(start, &Limits::default()), Ok(None), "{bytes:?} cut at {cut}");
                // The rest and a body follow.
                let pieces = [start, &bytes.as_bytes()[cut..], b"body\n\n"];
                let (head, rest) = feed(ResponseHeadDecoder::new(Limits::default()), pieces).unwrap().unwrap();
                assert_eq!(head, meaning(fixture));
                assert_eq!(rest, &b"body\n\n"[..]);
            }
            let bytes = format!("{bytes}body");
            let (head, rest) =
                feed(ResponseHeadDecoder::new(Limits::default()), bytes.as_bytes().chunks(1)).unwrap().unwrap();
            assert_eq!(head, meaning(fixture));
            assert_eq!(rest, &b"body"[..]);
        }
    }
}

#[test]
fn an_nph_head_cut_at_any_byte_is_incomplete_and_never_wrong() {
    let bytes = b"HTTP/1.1 404 Not here\r\nA: a\r\nContent-Length: 4\r\n\r\n";
    let expected = ResponseHead::decode_nph(bytes, &Limits::default()).unwrap().unwrap();
    for cut in 0..bytes.len() {
        assert_eq!(ResponseHead::decode_nph(&bytes[..cut], &Limits::default()), Ok(None));
        let pieces = [&bytes[..cut], &bytes[cut..]];
        let (head, rest) = feed(ResponseHeadDecoder::nph(Limits::default()), pieces).unwrap().unwrap();
        assert_eq!((&head, rest.len()), (&expected.0, 0));
        assert_ne!(is_nph(&bytes[..cut]), Some(false));
    }
}

#[test]
fn a_refused_head_is_refused_alike_however_it_is_cut() {
    for bytes in REFUSED {
        let error = ResponseHead::decode(bytes, &Limits::default()).unwrap_err();
        for size in 1..bytes.len() {
            let result = feed(ResponseHeadDecoder::new(Limits::default()), bytes.chunks(size));
            assert_eq!(result, Err(error.clone()), "{} in {size}s", bytes.escape_ascii());
        }
    }
}

#[test]
fn what_a_head_means_survives_being_written() {
    for fixture in FIXTURES {
        let head = meaning(fixture);
        let mut out = BytesMut::new();
        head.encode(&mut out).unwrap();
        assert_eq!(ResponseHead::decode(&out, &Limits::default()), Ok(Some((head, out.len()))));
    }
}

#[test]
fn cve_2010_3872_cve_2013_4365_cve_2014_3583_long_heads_are_capped() {
    let limits = Limits::default();
    // Heads of just the limit, in one long field and in many short ones, at every offset of the cut around it.
    let long = [&b"X: "[..], &vec![b'x'; limits.max_len - 5], b"\n\n"].concat();
    let many = [b"A: a\r\n".repeat(255).as_slice(), b"\r\n"].concat();
    for bytes in [&long, &many] {
        let (_, consumed) = ResponseHead::decode(bytes, &limits).unwrap().unwrap();
        assert_eq!(consumed, bytes.len());
        for size in [1, 7, 4096, 65535] {
            let (_, rest) = feed(ResponseHeadDecoder::new(limits), bytes.chunks(size)).unwrap().unwrap();
            assert!(rest.is_empty());
        }
    }
    // One byte more, and one field more.
    let longer = [&b"X: "[..], &vec![b'x'; limits.max_len - 4], b"\n\n"].concat();
    assert_eq!(ResponseHead::decode(&longer, &limits), Err(HeadError::TooLong { limit: 65536 }));
    let more = [b"A: a\r\n".repeat(257).as_slice(), b"\r\n"].concat();
    assert_eq!(ResponseHead::decode(&more, &limits), Err(HeadError::TooManyFields { limit: 256 }));
    for size in [1, 7, 4096, 65535] {
        let decoder = || ResponseHeadDecoder::new(limits);
        assert_eq!(feed(decoder(), longer.chunks(size)), Err(HeadError::TooLong { limit: 65536 }));
        assert_eq!(feed(decoder(), more.chunks(size)), Err(HeadError::TooManyFields { limit: 256 }));
    }
}

#[test]
fn cve_2010_3872_a_head_without_an_end_stops_at_the_cap() {
    for endless in [&b"x"[..], b"A", b"A:", b"A: ", b"A: a"] {
        let mut decoder = ResponseHeadDecoder::new(Limits { max_len: 1000, max_fields: 10 });
        let mut buffer = BytesMut::from(endless);
        while buffer.len() <= 1000 {
            assert_eq!(decoder.decode(&mut buffer), Ok(None));
            buffer.extend_from_slice(b"x");
        }
        assert_eq!(decoder.decode(&mut buffer), Err(HeadError::TooLong { limit: 1000 }));
    }
}

#[test]
fn cve_2023_38709_response_splitting_by_a_bare_cr_or_nul_is_refused() {
    for byte in *b"\r\0" {
        for place in ["A@B: a", "A:@a", "A: a@Set-Cookie: b", "Status: 200 O@K", "Location: /a@b", "Content-Type: a/b@"]
        {
            let bytes: Vec<u8> =
                place.bytes().map(|each| if each == b'@' { byte } else { each }).chain(*b"\nB: b\n\n").collect();
            // A CR right before LF is the line's end.
            if bytes.windows(2).any(|pair| pair == b"\r\n") {
                continue;
            }
            let error = ResponseHead::decode(&bytes, &Limits::default()).unwrap_err();
            assert!(matches!(error, HeadError::ForbiddenByte { .. }), "{place}: {error}");
        }
    }
}

#[test]
fn cve_2024_24795_a_scripts_own_transfer_encoding_is_refused() {
    for name in ["Transfer-Encoding", "transfer-encoding", "TRANSFER-ENCODING"] {
        for value in ["chunked", "identity", "gzip, chunked", ""] {
            let bytes = format!("Content-Type: text/plain\n{name}: {value}\n\n");
            let error = ResponseHead::decode(bytes.as_bytes(), &Limits::default()).unwrap_err();
            assert!(matches!(error, HeadError::TransferEncoding { .. }), "{error}");
            let bytes = format!("HTTP/1.1 200 OK\n{name}: {value}\n\n");
            let error = ResponseHead::decode_nph(bytes.as_bytes(), &Limits::default()).unwrap_err();
            assert!(matches!(error, HeadError::TransferEncoding { .. }), "{error}");
        }
        let mut out = BytesMut::new();
        let error = encode_head(200, b"OK", [(name.as_bytes(), &b"chunked"[..])], &mut out).unwrap_err();
        assert!(matches!(error, FieldError::Reserved { .. }) && out.is_empty());
    }
}

#[test]
fn cve_2024_24795_a_false_content_length_is_refused() {
    for value in ["-1", "+1", "1,1", "1 1", "0x1", "1.0", "18446744073709551616", "one"] {
        let bytes = format!("Content-Length: {value}\n\n");
        let error = ResponseHead::decode(bytes.as_bytes(), &Limits::default()).unwrap_err();
        assert!(matches!(error, HeadError::InvalidContentLength { .. }), "{error}");
    }
    let error =
        ResponseHead::decode(b"Content-Length: 1\nX: x\ncontent-length: 10\n\n", &Limits::default()).unwrap_err();
    assert!(matches!(error, HeadError::Repeated { field: "Content-Length", .. }), "{error}");
}

#[test]
fn cve_2024_42516_a_content_type_that_changes_its_mind_is_refused() {
    let error =
        ResponseHead::decode(b"Content-Type: text/plain\nContent-Type: text/html\n\n", &Limits::default()).unwrap_err();
    assert!(matches!(error, HeadError::Repeated { field: "Content-Type", .. }), "{error}");
}

#[test]
fn cve_2020_24553_a_missing_content_type_stays_missing() {
    for bytes in ["Status: 200 OK\n\n", "Content-Type:\nX: x\n\n"] {
        let (head, _) = ResponseHead::decode(bytes.as_bytes(), &Limits::default()).unwrap().unwrap();
        assert_eq!(head.field(b"Content-Type"), None);
        assert!(head.headers.iter().all(|(name, _)| name != b"Content-Type"));
    }
}

#[test]
fn errors_show_at_most_64_bytes() {
    let bytes = [vec![b'x'; 60_000].as_slice(), b"\n\n"].concat();
    let message = ResponseHead::decode(&bytes, &Limits::default()).unwrap_err().to_string();
    assert_eq!(message, format!("expected a header field, got a line without a colon, \"{}\"…", "x".repeat(64)));
}

/// A field name that has no rule of its own.
fn field_name() -> impl Strategy<Value = String> {
    "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}".prop_filter("a field with a rule of its own", |name| {
        !["Status", "Location", "Content-Type", "Content-Length", "Transfer-Encoding"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
    })
}

/// Text without CR, LF and NUL, and without blanks at its ends.
fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40).prop_map(|mut text| {
        text.retain(|byte| !b"\r\n\0".contains(byte));
        let blank = |byte: &u8| b" \t".contains(byte);
        let start = text.iter().take_while(|byte| blank(byte)).count();
        text.drain(..start);
        text.truncate(text.len() - text.iter().rev().take_while(|byte| blank(byte)).count());
        text
    })
}

fn head() -> impl Strategy<Value = ResponseHead> {
    let status = option::of((100..=999_u16, text()));
    let known =
        (option::of("/[a-z?]{0,9}|https://[a-z]{1,9}"), option::of("[a-z]{1,9}/[a-z]{1,9}"), option::of(any::<u64>()));
    (status, known, vec((field_name(), text()), 0..20))
        .prop_map(|(status, (location, content_type, content_length), others)| {
            let mut headers = Pairs::new();
            headers.extend(location.map(|value| ("Location", value)));
            headers.extend(others);
            headers.extend(content_type.map(|value| ("Content-Type", value)));
            headers.extend(content_length.map(|value| ("content-length", value.to_string())));
            ResponseHead { status: status.map(|(code, reason)| Status { code, reason: reason.into() }), headers }
        })
        .prop_filter("a head has a field", |head| head.status.is_some() || !head.headers.is_empty())
}

/// Bytes that look enough like a head to come far.
fn nearly_a_head() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(vec![
            "Status", "status: 200", "Location: ", "/", "Content-Type: ", "Content-Length: ", "Transfer-Encoding", "X",
            ":", ": ", " ", "\t", "\n", "\n", "\r\n", "\r\n", "\r", "\0", "1", "404 ", "HTTP/1.1 ", "200 OK", "\u{e4}",
        ]).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..8),
    ];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(head in head(), body in vec(any::<u8>(), 0..20)) {
        let mut out = BytesMut::new();
        head.encode(&mut out).unwrap();
        let len = out.len();
        out.extend_from_slice(&body);
        prop_assert_eq!(ResponseHead::decode(&out, &Limits::default()), Ok(Some((head, len))));
    }

    #[test]
    fn no_input_panics_and_pieces_change_nothing(bytes in nearly_a_head(), size in 1..50_usize, max_len in 0..400_usize) {
        let limits = Limits { max_len, max_fields: 8 };
        for (whole, decoder) in [
            (ResponseHead::decode(&bytes, &limits), ResponseHeadDecoder::new(limits)),
            (ResponseHead::decode_nph(&bytes, &limits), ResponseHeadDecoder::nph(limits)),
        ] {
            let in_pieces = feed(decoder, bytes.chunks(size));
            match whole {
                Ok(Some((head, consumed))) => {
                    prop_assert!(consumed <= max_len);
                    // Whatever passes can be written, and then means the same.
                    let mut out = BytesMut::new();
                    head.encode(&mut out).unwrap();
                    if head.status.is_some() || !head.headers.is_empty() {
                        let again = ResponseHead::decode(&out, &Limits::default()).unwrap().unwrap();
                        prop_assert_eq!(&again.0, &head);
                    }
                    let _: (ResponseKind<'_>, _, _) = (head.kind(), head.status_or_default(), head.content_length());
                    prop_assert_eq!(in_pieces, Ok(Some((head, BytesMut::from(&bytes[consumed..])))));
                }
                Ok(None) => prop_assert_eq!(in_pieces, Ok(None)),
                Err(error) => prop_assert_eq!(in_pieces, Err(error)),
            }
        }
    }

    #[test]
    fn the_writer_writes_nothing_that_reads_as_something_else(
        code in 0..1100_u16,
        reason in vec(any::<u8>(), 0..6),
        fields in vec((prop_oneof![field_name().prop_map(String::into_bytes), vec(any::<u8>(), 0..4)], vec(any::<u8>(), 0..8)), 0..4),
    ) {
        let mut out = BytesMut::new();
        let headers = fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        match encode_head(code, &reason, headers, &mut out) {
            Err(_) => prop_assert!(out.is_empty()),
            Ok(()) => {
                let (head, consumed) = ResponseHead::decode(&out, &Limits::default()).unwrap().unwrap();
                prop_assert_eq!(consumed, out.len());
                prop_assert_eq!(head.status.map(|status| status.code), Some(code));
                prop_assert!(head.headers.iter().map(|(name, _)| name).eq(fields.iter().map(|(name, _)| name.as_slice())));
            }
        }
    }

    #[test]
    fn no_variable_makes_its_view_panic(name in "[A-Z_]{0,20}", value in vec(any::<u8>(), 0..30)) {
        let variables = MetaVariables::new(|_: &[u8]| Some(value.as_slice()));
        let _ = (variables.content_length(), variables.gateway_interface(), variables.remote_addr());
        let _ = (variables.request_method(), variables.server_port(), variables.server_protocol());
        let _ = (variables.is_https(), variables.http(&name));
    }

    #[test]
    fn header_aliases_and_httpoxy_no_two_fields_that_differ_become_one_variable(
        one in "[A-Za-z_.-]{1,12}|[Pp]roxy|[Cc]ontent[-_][Tt]ype",
        other in "[A-Za-z_.-]{1,12}|[Pp]roxy|[Cc]ontent[-_][Tt]ype",
    ) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        if variable_name(one.as_bytes(), &mut a) && variable_name(other.as_bytes(), &mut b) {
            prop_assert_eq!(a == b, one.eq_ignore_ascii_case(&other));
            prop_assert!(!is_forbidden(&a));
        }
    }
}
