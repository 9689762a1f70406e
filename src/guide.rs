//! Guides: one page per subject, with examples that compile.
//!
//! The reference of each item says what that item does. These pages say how the parts work together, in which order they
//! run, and what to check before production.
// Each page is a file of `src/docs`. It defines its links at its end (``[`Client`]: crate::Client``), so that it can be
// included anywhere.

#[doc = include_str!("docs/mounting.md")]
pub mod mounting {}

#[doc = include_str!("docs/layer_order.md")]
pub mod layer_order {}

#[doc = include_str!("docs/security.md")]
pub mod security {}

#[doc = include_str!("docs/identity.md")]
pub mod identity {}

#[doc = include_str!("docs/timeouts.md")]
pub mod timeouts {}

#[doc = include_str!("docs/pooling_and_retries.md")]
pub mod pooling_and_retries {}

#[doc = include_str!("docs/failures.md")]
pub mod failures {}

#[doc = include_str!("docs/telemetry.md")]
pub mod telemetry {}

#[doc = include_str!("docs/upgrades.md")]
pub mod upgrades {}

#[doc = include_str!("docs/several_backends.md")]
pub mod several_backends {}

#[doc = include_str!("docs/testing.md")]
pub mod testing {}

#[doc = include_str!("docs/behind_a_proxy.md")]
pub mod behind_a_proxy {}

#[doc = include_str!("docs/production.md")]
pub mod production {}

#[doc = include_str!("docs/from_iis.md")]
pub mod from_iis {}

#[doc = include_str!("docs/from_nginx.md")]
pub mod from_nginx {}

#[doc = include_str!("docs/from_axum_reverse_proxy.md")]
pub mod from_axum_reverse_proxy {}

#[doc = include_str!("docs/not_included.md")]
pub mod not_included {}

#[doc = include_str!("docs/limits.md")]
pub mod limits {}
