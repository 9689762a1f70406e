//! The hash of keys and of members' names. Pure.

/// Hashes bytes to the same number in every process, on every platform and in every version of this crate.
///
/// It's for the closures of [`Pick::hash`](super::Pick::hash) and [`Sticky::by`](crate::balance::Sticky::by).
/// [`DefaultHasher`](std::hash::DefaultHasher) isn't suitable there, because its algorithm may change with the version
/// of Rust: replicas that were built differently would disagree.
///
/// ```
/// use tower_reverse_proxy::balance::stable_hash;
///
/// assert_eq!(stable_hash("alice"), stable_hash(b"alice"));
/// assert_eq!(stable_hash("alice"), 0xc5d1_556d_6677_4a5c);
/// ```
///
/// # Security
///
/// The algorithm has no key (FNV-1a, then the finalizer of SplitMix64), so clients can find texts with equal hashes.
/// It's for the distribution of requests, and for nothing that has to be unforgeable.
#[must_use]
pub fn stable_hash(bytes: impl AsRef<[u8]>) -> u64 {
    mixed(fnv_1a(bytes.as_ref()))
}

/// FNV-1a with 64 bits.
///
/// A dependency isn't worth these few lines: it would have to promise that its values never change. A hash with a
/// secret key would protect nothing, because a client that wants its requests at one member repeats one path.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Spreads every bit over the whole number (the finalizer of SplitMix64). In FNV, the last bytes of a text hardly
/// change the high bits.
pub(super) fn mixed(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_1a_has_its_published_values() {
        for (text, hash) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(fnv_1a(text.as_bytes()), hash, "{text}");
        }
    }

    /// If this fails, replicas of two versions disagree about every key.
    #[test]
    fn the_hash_never_changes() {
        for (text, hash) in [
            ("", 0xf52a_15e9_a9b5_e89b),
            ("alice", 0xc5d1_556d_6677_4a5c),
            ("/app/x", 0xebc8_288f_038a_1b0b),
            ("http://10.0.0.1:8000", 0x3fef_1883_c512_6a18),
            ("unix:/run/app.sock", 0x2a80_531c_15a0_e494),
        ] {
            assert_eq!(stable_hash(text), hash, "{text}");
        }
    }

    #[test]
    fn names_that_differ_at_the_end_differ_in_half_of_the_bits() {
        let hashes: Vec<u64> = (0..200).map(|n| stable_hash(format!("http://10.0.0.{n}:8000"))).collect();
        for pair in hashes.windows(2) {
            let bits = (pair[0] ^ pair[1]).count_ones();
            assert!((12..=52).contains(&bits), "{bits} of 64 bits differ");
        }
    }
}
