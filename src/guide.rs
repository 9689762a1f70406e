//! Guides: one page per subject, with examples that compile.
//!
//! The reference of each item says what that item does. These pages say how the parts work together, in which order they
//! run, and what to check before production.
// Each page is a file of `src/docs`. It defines its links at its end (``[`Client`]: crate::Client``), so that it can be
// included anywhere.
