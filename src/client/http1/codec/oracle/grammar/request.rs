//! Requests: every method, framing field and kind of body.

use http::Method;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{super::request::Case, list};

pub(in super::super) fn case() -> impl Strategy<Value = Case> {
    (method(), target(), vec(field(), 0..6), body(), (any::<bool>(), vec(1..40_usize, 0..4))).prop_map(
        |(method, target, fields, (data, trailers, length, knows_its_end), (is_titled, writes))| Case {
            method,
            target,
            fields: fields.concat(),
            data,
            trailers,
            length,
            knows_its_end,
            is_titled,
            writes,
        },
    )
}

fn method() -> impl Strategy<Value = Method> {
    select(&[Method::GET, Method::POST, Method::PUT, Method::HEAD, Method::DELETE, Method::OPTIONS, Method::PATCH][..])
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(&["/", "/a?b=c", "*", "//a", "/?", "/%00", "/a;b"][..]).prop_map(str::to_owned),
        1 => "/[a-z0-9%./;=-]{0,40}",
    ]
}

/// A field, or lines of it, as pairs of name and value.
fn field() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let usual = (list![b"host", b"x-a", b"accept", b"user-agent", b"cookie", b"x_b", b"a-", b"-a-b"], value());
    let name = prop_oneof![
        4 => Just(b"content-length".to_vec()),
        4 => Just(b"transfer-encoding".to_vec()),
        4 => Just(b"trailer".to_vec()),
        2 => Just(b"connection".to_vec()),
        1 => Just(b"expect".to_vec()),
        1 => Just(b"te".to_vec()),
    ];
    let framing = name.prop_flat_map(|name| {
        let value = match &name[..] {
            b"content-length" => {
                list![b"5", b"0", b"3", b"05", b"5, 5", b"5,6", b"x", b"", b"18446744073709551615", b"+5", b"5 "]
                    .boxed()
            }
            b"transfer-encoding" => list![
                b"chunked",
                b"Chunked",
                b"gzip",
                b"gzip, chunked",
                b"chunked, gzip",
                b"\xff, chunked",
                b"",
                b"\xff"
            ]
            .boxed(),
            b"trailer" => {
                list![b"digest", b"Digest, X-A", b"x-a", b"content-length, digest", b"", b" ,", b"\xff", b"\xff, x-a"]
                    .boxed()
            }
            b"connection" => list![b"close", b"keep-alive", b"x, Close", b"te", b"close\xff", b"\xff, close"].boxed(),
            b"expect" => list![b"100-continue"].boxed(),
            _ => list![b"trailers", b"gzip"].boxed(),
        };
        (Just(name), value)
    });
    prop_oneof![3 => vec(usual, 1..3), 2 => vec(framing, 1..2)]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[!-~]([ -~]{0,20}[!-~])?".prop_map(String::into_bytes),
        1 => list![b"", b"\xff", b"a\tb", b"\xe9"],
        1 => (0..5000_usize).prop_map(|size| vec![b'v'; size]),
    ]
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Data, trailers, the length that it announces, and whether it knows its end.
fn body() -> impl Strategy<Value = (Vec<Vec<u8>>, Option<Fields>, Option<u64>, bool)> {
    let data = prop_oneof![
        12 => vec(any::<u8>(), 1..8),
        3 => Just(b"12345".to_vec()),
        1 => Just(Vec::new()),
        1 => (8000..8400_usize).prop_map(|size| vec![b'd'; size]),
        1 => (1..40_000_usize).prop_map(|size| vec![b'D'; size]),
    ];
    let data = prop_oneof![2 => Just(Vec::new()), 5 => vec(data, 1..5)];
    let trailer = (list![b"digest", b"x-a", b"content-length", b"host", b"x-b"], value());
    let trailers = prop_oneof![3 => Just(None), 1 => vec(trailer, 0..3).prop_map(Some)];
    // Not the true one rarely, because then one of both sides sends it wrongly.
    let length = option::of(prop_oneof![20 => Just(0_i64), 1 => -3..4_i64]);
    (data, trailers, length, any::<bool>()).prop_map(|(data, trailers, more, knows_its_end)| {
        let size = i64::try_from(data.concat().len()).unwrap();
        (data, trailers, more.map(|more| (size + more).unsigned_abs()), knows_its_end)
    })
}
