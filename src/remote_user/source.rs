//! Where the user of a request comes from.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use axum_core::BoxError;
use http::{Extensions, request::Parts};

use crate::identity::{ExpectedExtension, RemoteUser};

/// Where the user of a request comes from. Only a lookup needs a box for each request.
#[derive(Clone)]
pub(super) enum Source {
    /// The [`RemoteUser`] that the application has inserted.
    Inserted,
    Extension(ReadExtension),
    Parts(ReadParts),
    Lookup(StartLookup),
}

type ReadExtension = Arc<dyn Fn(&Extensions) -> Option<RemoteUser> + Send + Sync>;
type ReadParts = Arc<dyn Fn(&Parts) -> Option<RemoteUser> + Send + Sync>;
/// Starts a lookup that may take as long as given. `None` without the extension that it needs.
type StartLookup = Arc<dyn Fn(&Extensions, Duration) -> Option<Lookup> + Send + Sync>;

/// A lookup of the user that has begun.
pub(super) type Lookup = Pin<Box<dyn Future<Output = Result<Option<RemoteUser>, BoxError>> + Send>>;

impl Source {
    pub(super) fn extension<T, U>(user: impl Fn(&T) -> Option<U> + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
        U: Into<RemoteUser>,
    {
        let expected = ExpectedExtension::new();
        Self::Extension(Arc::new(move |extensions| Some(user(expected.find(extensions)?)?.into())))
    }

    pub(super) fn parts<U>(user: impl Fn(&Parts) -> Option<U> + Send + Sync + 'static) -> Self
    where
        U: Into<RemoteUser>,
    {
        Self::Parts(Arc::new(move |parts| user(parts).map(Into::into)))
    }

    pub(super) fn lookup<T, U, E, F>(user: impl Fn(T) -> F + Send + Sync + 'static) -> Self
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<Option<U>, E>> + Send + 'static,
        U: Into<RemoteUser>,
        E: Into<BoxError>,
    {
        let expected = ExpectedExtension::<T>::new();
        Self::Lookup(Arc::new(move |extensions, deadline| {
            let user = user(expected.find(extensions)?.clone());
            Some(Box::pin(async move {
                match tokio::time::timeout(deadline, user).await {
                    Ok(Ok(user)) => Ok(user.map(Into::into)),
                    Ok(Err(error)) => Err(error.into()),
                    Err(_) => Err(LookupTimeout(deadline).into()),
                }
            }))
        }))
    }
}

/// The cause of a refused request whose user wasn't found in time.
#[derive(Debug)]
struct LookupTimeout(Duration);

impl fmt::Display for LookupTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the lookup of the user took longer than {:?}", self.0)
    }
}

impl std::error::Error for LookupTimeout {}
