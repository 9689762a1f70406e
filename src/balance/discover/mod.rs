//! Sources of members: what [`Backends::follow`](super::Backends::follow) follows.
//!
//! A source is a [`Stream`](futures_core::Stream) of whole sets, each of which replaces the one before, as by
//! [`Backends::set`](super::Backends::set): members of both keep their connections, load and health. An error of the
//! source, an empty set and an invalid one leave the last set as it is, and are logged. So a name server that fails
//! takes no backend away.
//!
//! | source | |
//! |---|---|
//! | [`Dns`] | the addresses of a name, by the system's look-up, every 30 seconds |
//! | `DnsRecords`, with the feature `dns` | the same by A, AAAA or SRV records, as long as they are valid |
//! | [`Changes`] | tower's [`Discover`](tower::discover::Discover) |
//! | any `Stream` | a configuration file that is watched, a database, an orchestrator's API |

mod changes;
mod dns;
mod follow;
#[cfg(feature = "dns")]
mod records;
mod rounds;

pub(super) use self::follow::Followers;
#[cfg(feature = "dns")]
#[cfg_attr(docsrs, doc(cfg(feature = "dns")))]
pub use self::records::DnsRecords;
pub use self::{changes::Changes, dns::Dns, follow::Follow};
