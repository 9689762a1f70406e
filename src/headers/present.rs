//! Which fields a message has, of those that the forwarder acts on.
//!
//! Most messages have few of them. One pass over the names costs less than a look-up for each, and a step whose field
//! is missing is skipped.

use http::{
    HeaderMap, HeaderName,
    header::{ALT_SVC, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRAILER, TRANSFER_ENCODING, VIA},
};

use super::{
    hop,
    reserved::{self, KeptFields},
};

/// Which fields a message had before the first step. A later step may have removed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) content_length: bool,
    pub(crate) content_type: bool,
    pub(crate) expect: bool,
    pub(crate) trailer: bool,
    pub(crate) transfer_encoding: bool,
    pub(crate) via: bool,
    /// A field that isn't forwarded. Without one, there is no `Connection` and no `TE` either.
    pub(crate) unwanted: bool,
}

impl Present {
    pub(crate) fn in_request(headers: &HeaderMap, keep: KeptFields) -> Self {
        Self::of(headers, |name| reserved::is_for_the_proxy_only(name, keep))
    }

    pub(crate) fn in_response(headers: &HeaderMap) -> Self {
        Self::of(headers, |name| name == ALT_SVC)
    }

    fn of(headers: &HeaderMap, is_unwanted: impl Fn(&HeaderName) -> bool) -> Self {
        let mut has = Self::default();
        for name in headers.keys() {
            match *name {
                CONTENT_LENGTH => has.content_length = true,
                CONTENT_TYPE => has.content_type = true,
                EXPECT => has.expect = true,
                TRAILER => has.trailer = true,
                TRANSFER_ENCODING => has.transfer_encoding = true,
                VIA => has.via = true,
                _ => {}
            }
            has.unwanted |= hop::is_hop_by_hop(name) || is_unwanted(name);
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(names: &[&str]) -> HeaderMap {
        names.iter().map(|name| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"))).collect()
    }

    #[test]
    fn fields_are_found_by_their_names() {
        let keep = KeptFields::default();
        assert_eq!(Present::in_request(&map(&[]), keep), Present::default());
        assert_eq!(Present::in_request(&map(&["host", "accept", "x-id"]), keep), Present::default());
        let all = ["content-length", "content-type", "expect", "trailer", "transfer-encoding", "via"];
        let found = Present {
            content_length: true,
            content_type: true,
            expect: true,
            trailer: true,
            transfer_encoding: true,
            via: true,
            unwanted: true,
        };
        assert_eq!(Present::in_request(&map(&all), keep), found);
        assert_eq!(Present::in_response(&map(&all)), found);
    }

    #[test]
    fn fields_that_are_not_forwarded_are_unwanted() {
        let keep = KeptFields::default();
        for name in ["connection", "keep-alive", "te", "remote-user", "x_id", "x-forwarded-for", "forwarded"] {
            assert!(Present::in_request(&map(&["accept", name]), keep).unwanted, "{name}");
        }
        let keep = KeptFields { forwarding: true, ..keep };
        assert!(!Present::in_request(&map(&["x-forwarded-for", "forwarded"]), keep).unwanted);
        for (name, unwanted) in [("connection", true), ("alt-svc", true), ("remote-user", false), ("x_id", false)] {
            assert_eq!(Present::in_response(&map(&["server", name])).unwanted, unwanted, "{name}");
        }
    }
}
