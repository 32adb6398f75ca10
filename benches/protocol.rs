//! What the protocol floor costs: records, a request, heads. `cargo bench --bench protocol`.

use std::hint::black_box;

use bytes::{BufMut, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gatespan::Environ;
use gatespan::application::Variables;
use gatespan::protocol::cgi::{Limits, ResponseHead, encode_head};
use gatespan::protocol::fastcgi::application_end::{Event, Settings};
use gatespan::protocol::fastcgi::{
    ApplicationEnd, HEADER_LEN, Header, ProtocolStatus, RecordType, RequestId, put_record,
};

#[path = "servers/load.rs"]
#[expect(dead_code, reason = "only the request is of use here")]
mod load;

const ID: RequestId = RequestId(1);

/// Records one after the other out of a buffer that holds some, their content looked at as a slice.
fn records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    for len in [0, 1, 100, 2047, 4096, 65_535] {
        const COUNT: usize = 16;
        let mut wire = Vec::new();
        for _ in 0..COUNT {
            put_record(RecordType::Stdin, ID, &vec![b'x'; len], (len.wrapping_neg() & 7) as u8, &mut wire);
        }
        group.throughput(Throughput::Elements(COUNT as u64));
        group.bench_function(format!("decode/{len}"), |bencher| {
            bencher.iter(|| {
                let mut rest = black_box(&wire[..]);
                while let Ok(Some(header)) = Header::decode(rest) {
                    let content = &rest[HEADER_LEN..][..usize::from(header.content_len)];
                    black_box((header, content));
                    rest = &rest[HEADER_LEN + content.len() + usize::from(header.padding_len)..];
                }
                assert!(rest.is_empty());
            });
        });
    }
    group.finish();
}

/// The same records as a request's body, as the application's end of a connection makes them into events: from 512 bytes on the content shares the
/// buffer, below that it is copied. The buffer is filled outside of what is measured, as a socket would.
fn stdin(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stdin");
    for len in [1, 100, 2047, 4096, 65_535] {
        const COUNT: usize = 16;
        let mut wire = Vec::new();
        for _ in 0..COUNT {
            put_record(RecordType::Stdin, ID, &vec![b'x'; len], (len.wrapping_neg() & 7) as u8, &mut wire);
        }
        group.throughput(Throughput::Elements(COUNT as u64));
        group.bench_function(format!("event/{len}"), |bencher| {
            bencher.iter_batched(
                || {
                    let mut end = ApplicationEnd::new(Settings::default());
                    let request = load::request("POST", 1, true);
                    // Without the records of its body: one of one byte, padded, and the end.
                    end.receive(&request[..request.len() - 24]);
                    assert!(matches!(end.next_event(), Ok(Some(Event::Request { .. }))));
                    // All handles to the buffer are gone by then, so that it is freed outside too.
                    *end.receive_buffer() = BytesMut::from(&wire[..]);
                    (end, Vec::with_capacity(COUNT))
                },
                |(mut end, mut events)| {
                    while let Ok(Some(event)) = end.next_event() {
                        events.push(event);
                    }
                    (end, events)
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// A request as nginx sends it, from bytes to environ; then also back to bytes.
fn request(criterion: &mut Criterion) {
    let wire = load::request("GET", 0, true);
    let mut group = criterion.benchmark_group("request");
    let mut end = ApplicationEnd::new(Settings::default());
    let mut decode = move || {
        end.receive(&wire);
        let mut environ = None;
        while let Ok(Some(event)) = end.next_event() {
            if let Event::Request { params, .. } = event {
                environ = Some(Environ::new(Variables::from_pairs(params)));
            }
        }
        // So that its id is free for the next one. Some 20 ns of what is measured.
        end.end_request(ID, 0, ProtocolStatus::RequestComplete);
        let output = end.output();
        bytes::Buf::advance(output, output.len());
        environ.expect("the request is whole")
    };
    assert_eq!(decode().variables().pairs().len(), 25);
    group.bench_function("25 variables into Environ", |bencher| bencher.iter(&mut decode));
    group.bench_function("25 variables, with nine looked up", |bencher| {
        bencher.iter(|| {
            let environ = decode();
            for name in [
                "REQUEST_METHOD",
                "PATH_INFO",
                "QUERY_STRING",
                "CONTENT_LENGTH",
                "CONTENT_TYPE",
                "HTTP_HOST",
                "HTTP_COOKIE",
                "HTTP_ACCEPT",
                "REMOTE_ADDR",
            ] {
                black_box(environ.get(name));
            }
        });
    });
    group.finish();
}

fn heads(criterion: &mut Criterion) {
    let fields: [(&[u8], &[u8]); 6] = [
        (b"Content-Type", b"text/html; charset=utf-8"),
        (b"Content-Length", b"10452"),
        (b"Cache-Control", b"private, max-age=0"),
        (b"Set-Cookie", b"session=0123456789abcdef; Path=/; HttpOnly"),
        (b"Last-Modified", b"Sat, 21 Nov 2026 07:28:00 GMT"),
        (b"Vary", b"Accept-Encoding"),
    ];
    let mut head = BytesMut::new();
    encode_head(200, b"OK", fields, &mut head).expect("these may be sent");
    let mut group = criterion.benchmark_group("head");
    group.bench_function("encode, 6 fields", |bencher| {
        let mut out = BytesMut::with_capacity(1024);
        bencher.iter(|| {
            out.clear();
            encode_head(200, b"OK", black_box(fields), &mut out).expect("these may be sent");
            black_box(out.len())
        });
    });
    head.put_slice(b"<!doctype html>");
    group.bench_function("decode, 6 fields", |bencher| {
        let limits = Limits::default();
        bencher.iter(|| ResponseHead::decode(black_box(&head), &limits).expect("it is a head"));
    });
    group.finish();
}

criterion_group!(benches, records, stdin, request, heads);
criterion_main!(benches);
