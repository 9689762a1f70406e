//! The live handle of a set of backends.

use std::{fmt, future::Future, sync::Arc};

use axum_core::BoxError;
use futures_core::Stream;

use super::{
    builder::{BackendsBuilder, InvalidBackends, Options, checked},
    discover::Follow,
    member::Member,
    set::Shared,
    status::MemberStatus,
    sticky::Sticky,
};
use crate::tried::SetId;

/// The backends of one or more mounts: a live handle, by which the set is changed and observed.
///
/// Clones share the set. So do two mounts that are made of one handle: they share its members' connections, load and
/// health.
///
/// ```
/// use axum::{Json, Router, extract::State, routing::get};
/// use tower_reverse_proxy::{Backends, ReverseProxyLayer};
///
/// /// Which backends get requests.
/// async fn status(State(backends): State<Backends>) -> Json<Vec<String>> {
///     Json(backends.status().iter().map(|member| format!("{}: {}", member.backend(), member.state())).collect())
/// }
///
/// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
/// let app: Router = Router::new()
///     .route("/status", get(status))
///     .with_state(backends.clone())
///     .layer(ReverseProxyLayer::balanced(&backends).prefix("/app"));
/// // Later, while requests are under way:
/// backends.set(["http://10.0.0.2:8000", "http://10.0.0.3:8000"])?;
/// # let _ = app;
/// # Ok::<_, tower_reverse_proxy::balance::InvalidBackends>(())
/// ```
#[derive(Clone)]
#[doc(alias = "upstream")]
#[doc(alias = "cluster")]
#[doc(alias = "load balancer")]
pub struct Backends {
    pub(super) shared: Arc<Shared>,
}

impl Backends {
    /// Makes a set with the default options, of origins or of [`Member`]s.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// # let _ = backends;
    /// ```
    ///
    /// # Panics
    ///
    /// If there is no member, or one is invalid, with a message that names what to write instead.
    /// [`try_new`](Self::try_new) returns it.
    #[track_caller]
    pub fn new<M: Into<Member>>(members: impl IntoIterator<Item = M>) -> Self {
        match Self::try_new(members) {
            Ok(backends) => backends,
            Err(error) => panic!("{error}"),
        }
    }

    /// Makes a set with the default options, as [`new`](Self::new) does.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// let none: [&str; 0] = [];
    /// assert!(Backends::try_new(none).is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no member, or one is invalid.
    pub fn try_new<M: Into<Member>>(members: impl IntoIterator<Item = M>) -> Result<Self, InvalidBackends> {
        Self::builder(members).build()
    }

    /// Begins to build a set with options.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::Member};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::balance::InvalidBackends> {
    /// let members = [Member::new("http://10.0.0.1:8000").weight(2), Member::new("http://10.0.0.2:8000")];
    /// let backends = Backends::builder(members).client(|client| client.pool_max_idle(16)).build()?;
    /// # let _ = backends;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder<M: Into<Member>>(members: impl IntoIterator<Item = M>) -> BackendsBuilder {
        BackendsBuilder::new(members)
    }

    /// Makes a set of services that exist already, whose names are their numbers.
    #[track_caller]
    pub(super) fn over(services: usize) -> Self {
        let mut builder = Self::builder((0..services).map(|number| Member::named(number.to_string())));
        builder.options.services = Some(services);
        match builder.build() {
            Ok(backends) => backends,
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn build(members: &[Member], options: Options) -> Result<Self, InvalidBackends> {
        let has_services = members.iter().any(Member::is_service);
        let shared = Arc::new(Shared::new(options, has_services));
        shared.replace(members)?;
        if shared.options.health.check.is_some() {
            shared.checks.ensure(&shared);
        }
        Ok(Self { shared })
    }

    /// Replaces the set, at once and as a whole.
    ///
    /// Members are compared by their scheme, authority and address. Those that are in both sets keep their connections,
    /// load and health. One that isn't in the new set gets no more requests. It's [listed](Self::status) as
    /// [draining](super::State::Draining) until its last exchange has ended, which no request notices. Its tunnels are
    /// closed after the [`drain_timeout`](BackendsBuilder::drain_timeout).
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// backends.set(["http://10.0.0.2:8000", "http://10.0.0.3:8000"])?;
    /// let names: Vec<_> = backends.status().iter().map(|member| member.backend().to_owned()).collect();
    /// assert_eq!(names, ["http://10.0.0.2:8000", "http://10.0.0.3:8000"]);
    /// # Ok::<_, tower_reverse_proxy::balance::InvalidBackends>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no member, or one is invalid, or the set is that of [`Balance::over`](super::Balance::over) and a
    /// member isn't one of its services. The set stays as it was.
    ///
    /// # Panics
    ///
    /// If a function or a layer that makes the service of a new member panics. The set is changed nevertheless. The
    /// mount of that function goes on with those members that it knows and that are still in the set, and makes the
    /// service again with the next change.
    pub fn set<M: Into<Member>>(&self, members: impl IntoIterator<Item = M>) -> Result<(), InvalidBackends> {
        let members = checked(members)?;
        if members.iter().any(Member::is_service) != self.shared.has_services {
            let text =
                "the members of this set are of another kind: write addresses if it began with addresses, else names";
            return Err(InvalidBackends::new(text.to_owned()));
        }
        if let Some(services) = self.shared.options.services
            && let Some(unknown) = members.iter().find(|member| service_number(member).is_none_or(|at| at >= services))
        {
            let text = format!(
                "`Balance::over` has no service {:?}: write names from \"0\" to \"{}\", or make the services of other \
                 names with `Balance::new`",
                unknown.name(),
                services - 1
            );
            return Err(InvalidBackends::new(text));
        }
        self.shared.replace(&members)
    }

    /// Makes each set of a source the set of the backends, as by [`set`](Self::set), until the returned guard is
    /// dropped or [detached](Follow::detach), the source ends, or the last handle and mount of the backends are gone.
    ///
    /// A source is a stream of whole sets, such as [`Dns`](super::discover::Dns): see [`discover`](super::discover). If
    /// it returns an error, no members or invalid ones, the last set stays, and a warning is logged.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, ReverseProxyLayer, balance::discover::Dns};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let backends = Backends::new(["http://app.internal:8000"]);
    /// let _follow = backends.follow(Dns::new("http://app.internal:8000"));
    /// let proxy = ReverseProxyLayer::balanced(&backends).prefix("/app");
    /// # let _ = proxy;
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[doc(alias = "service discovery")]
    pub fn follow<S, E>(&self, source: S) -> Follow
    where
        S: Stream<Item = Result<Vec<Member>, E>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        self.shared.followers.follow(Arc::downgrade(&self.shared), source)
    }

    /// Removes the member of this [name](Member::name), and waits until its last exchange and its last tunnel have
    /// ended.
    ///
    /// It's removed when this is called; the future only waits. Its tunnels are closed after the
    /// [`drain_timeout`](BackendsBuilder::drain_timeout); an exchange may take any time. It returns `false` at once if
    /// there is no member of this name. If it was the last one, requests are answered with 503 and `Retry-After: 1`. A
    /// [source](Self::follow) that still has the member brings it back with its next set.
    ///
    /// ```
    /// use tower_reverse_proxy::Backends;
    ///
    /// # async fn deploy() -> Result<(), tower_reverse_proxy::balance::InvalidBackends> {
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// backends.drain("http://10.0.0.1:8000").await;
    /// // … the machine is restarted, and comes back:
    /// backends.set(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting. The member stays removed.
    pub fn drain(&self, name: &str) -> impl Future<Output = bool> + Send + use<> {
        let shared = self.shared.clone();
        let removed = shared.remove(name);
        async move {
            let Some(member) = removed else { return false };
            shared.drained(member).await;
            true
        }
    }

    /// Returns what is known of each member, in the order of the set, and of those that are draining.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, balance::State};
    ///
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// let is_healthy = backends.status().iter().any(|member| member.state() == State::Up);
    /// assert!(is_healthy);
    /// ```
    #[must_use]
    pub fn status(&self) -> Vec<MemberStatus> {
        self.shared.status()
    }
}

impl Backends {
    /// Returns what distinguishes the set from others.
    pub(crate) fn id(&self) -> SetId {
        self.shared.id
    }

    /// Returns the name of the cookie by which sessions stay at their members, if they do.
    pub(crate) fn cookie_name(&self) -> Option<Arc<str>> {
        self.shared.options.selection.sticky.as_ref().and_then(Sticky::cookie_name)
    }

    /// Checks that every member has an address, and so a client.
    pub(crate) fn with_addresses(self) -> Result<Self, InvalidBackends> {
        if self.shared.has_services {
            let text = "the members are named, and have no address: write `Balance::new` with a function that makes \
                        their services, and give it to `ReverseProxyLayer::with_upstream`";
            return Err(InvalidBackends::new(text.to_owned()));
        }
        Ok(self)
    }
}

/// Returns the number of a member whose service exists already.
pub(super) fn service_number(member: &Member) -> Option<usize> {
    member.name().parse().ok().filter(|number: &usize| number.to_string() == member.name())
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backends").field(&self.status()).finish()
    }
}
