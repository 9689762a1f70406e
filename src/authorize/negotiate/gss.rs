//! The calls of the system's GSS-API library.

use std::{sync::Arc, time::Duration};

use libgssapi::{
    context::{ClientCtx, CtxFlags, SecurityContext},
    credential::{Cred, CredUsage},
    error::Error,
    name::Name,
    oid::{GSS_MECH_KRB5, GSS_MECH_SPNEGO, GSS_NT_HOSTBASED_SERVICE, GSS_NT_KRB5_PRINCIPAL, Oid, OidSet},
};

use super::mechanism::{Acquired, Context, Failure, Holder, Mechanism, Reason};

/// The codes `KRB5_KDC_UNREACH` and `KRB5_REALM_CANT_RESOLVE` of MIT's library.
const UNREACHABLE: [i32; 2] = [-1_765_328_228, -1_765_328_164];

/// `KRB5_REALM_UNKNOWN`: the configuration names no KDC.
const REALM_UNKNOWN: i32 = -1_765_328_230;

/// `KRB5KDC_ERR_S_PRINCIPAL_UNKNOWN`, `KRB5KDC_ERR_BADOPTION` and `KRB5KDC_ERR_POLICY`.
const UNKNOWN_SERVICE: i32 = -1_765_328_377;
const BAD_OPTION: i32 = -1_765_328_371;
const POLICY: i32 = -1_765_328_372;

/// The library, for one service and one account of the front.
pub(super) struct Gss {
    service: Name,
    /// Its text, for failures.
    service_text: Box<str>,
    /// The account of the front. `None`: the default one.
    account: Option<Account>,
    usage: CredUsage,
}

struct Account {
    name: Name,
    principal: Arc<str>,
}

impl Gss {
    /// For the front's own account, which signs in to the service as itself.
    pub(super) fn own(service: &str, account: Option<&str>) -> Result<Self, Failure> {
        let account = account.map(|text| {
            let name = principal(text)?;
            Ok(Account { principal: text_of(&name)?, name })
        });
        let account = account.transpose()?;
        Ok(Self { service: hostbased(service)?, service_text: service.into(), account, usage: CredUsage::Initiate })
    }

    /// For users. The front's own account acquires their credentials, for which it needs a key as a service has it.
    pub(super) fn on_behalf(service: &str) -> Result<Self, Failure> {
        Ok(Self { service: hostbased(service)?, service_text: service.into(), account: None, usage: CredUsage::Both })
    }

    fn context(&self, cred: &Cred, flags: CtxFlags, mechanism: Oid<'static>) -> Result<ClientCtx, Failure> {
        let service = self.service.duplicate().map_err(|error| failure("copying the service name", error))?;
        Ok(ClientCtx::new(Some(cred.clone()), service, flags, Some(mechanism)))
    }

    fn no_ticket(&self, holder: Holder, error: Error) -> Failure {
        let code = error.minor.cast_signed();
        let hint = match code {
            UNKNOWN_SERVICE => "; the KDC has no such service: compare the name with the backend's keytab",
            BAD_OPTION | POLICY if holder == Holder::User => {
                "; the KDC permits no account to act for this user, or not the front's account at this service"
            }
            _ => "",
        };
        let failure = failure(&format!("acquiring a ticket for {}", self.service_text), error);
        // No user has a ticket for a service that doesn't exist.
        let reason = if code == UNKNOWN_SERVICE { Reason::Front } else { failure.reason };
        Failure::new(reason, format!("{failure}{hint}"))
    }
}

impl Mechanism for Gss {
    type Cred = Cred;
    type Context = GssContext;

    fn acquire(&self) -> Result<Acquired<Cred>, Failure> {
        let refused = |error| failure("acquiring the front's own credential", error);
        let mechanisms = match self.usage {
            CredUsage::Initiate => &[GSS_MECH_KRB5, GSS_MECH_SPNEGO][..],
            _ => &[GSS_MECH_KRB5],
        };
        let name = self.account.as_ref().map(|account| &account.name);
        let cred = Cred::acquire(name, None, self.usage, Some(&set_of(mechanisms)?)).map_err(refused)?;
        let acquired = acquired(cred, refused)?;
        match &self.account {
            Some(Account { principal, .. }) if *principal != acquired.principal => Err(Failure::new(
                Reason::WrongSpeaker,
                format!("the credential is that of {}, and {principal} is meant", acquired.principal),
            )),
            _ => Ok(acquired),
        }
    }

    fn impersonate(&self, front: &Cred, user: &str) -> Result<Acquired<Cred>, Failure> {
        let refused = |error| failure("acquiring the user's credential (S4U2Self)", error);
        let name = principal(user)?;
        let cred = front.impersonate(&name, None, CredUsage::Initiate, Some(&set_of(&[GSS_MECH_KRB5])?));
        acquired(cred.map_err(refused)?, refused)
    }

    fn canonical(&self, name: &str) -> Result<Arc<str>, Failure> {
        text_of(&principal(name)?)
    }

    fn name(&self, cred: &Cred) -> Result<Arc<str>, Failure> {
        text_of(&cred.name().map_err(|error| failure("reading the name of the credential", error))?)
    }

    fn initiator(&self, cred: &Cred) -> Result<Arc<str>, Failure> {
        require(cred, GSS_MECH_KRB5)?;
        // Without mutual authentication, a context of this mechanism is complete after its first step.
        let mut context = self.context(cred, CtxFlags::empty(), GSS_MECH_KRB5)?;
        context.step(None, None).map_err(|error| self.no_ticket(Holder::User, error))?;
        source(&context)
    }

    fn initiate(&self, cred: &Cred, holder: Holder) -> Result<(Vec<u8>, GssContext), Failure> {
        let mechanism = match holder {
            Holder::Front => GSS_MECH_SPNEGO,
            Holder::User => GSS_MECH_KRB5,
        };
        // The library would use the default credential for a mechanism that the credential has no part for.
        require(cred, mechanism)?;
        let mut context = self.context(cred, CtxFlags::GSS_C_MUTUAL_FLAG, mechanism)?;
        let token = context.step(None, None).map_err(|error| self.no_ticket(holder, error))?;
        match token {
            Some(token) if !token.is_empty() && !context.is_complete() => Ok((token.to_vec(), GssContext(context))),
            _ => Err(Failure::new(Reason::Refused, "the library began no mutual authentication")),
        }
    }
}

/// A context after its first step.
pub(super) struct GssContext(ClientCtx);

impl Context for GssContext {
    fn finish(mut self, token: &[u8]) -> Result<Arc<str>, Failure> {
        self.0.step(Some(token), None).map_err(|error| failure("verifying the backend's token", error))?;
        source(&self.0)
    }
}

/// Returns whom the context speaks for. A context that isn't complete doesn't have it.
fn source(context: &ClientCtx) -> Result<Arc<str>, Failure> {
    if !context.is_complete() {
        return Err(Failure::new(Reason::Refused, "the context isn't complete after the backend's token"));
    }
    text_of(&context.source_name().map_err(|error| failure("reading the name of the context", error))?)
}

fn acquired(cred: Cred, refused: impl Fn(Error) -> Failure) -> Result<Acquired<Cred>, Failure> {
    let principal = text_of(&cred.name().map_err(&refused)?)?;
    let lifetime = cred.lifetime().map_err(&refused)?;
    if lifetime == Duration::ZERO {
        return Err(Failure::new(Reason::Refused, format!("the credential of {principal} has expired")));
    }
    Ok(Acquired { cred, principal, lifetime })
}

/// Refuses a credential without a part for the mechanism.
fn require(cred: &Cred, mechanism: Oid<'static>) -> Result<(), Failure> {
    let usable = cred.mechanisms().and_then(|mechanisms| mechanisms.contains(mechanism));
    match usable.map_err(|error| failure("reading the mechanisms of the credential", error))? {
        true => Ok(()),
        false => Err(Failure::new(Reason::Refused, format!("the credential can't be used with {mechanism}"))),
    }
}

fn set_of(mechanisms: &[Oid<'static>]) -> Result<OidSet, Failure> {
    let mut set = OidSet::new();
    for mechanism in mechanisms {
        set.add(*mechanism).map_err(|error| failure("listing the mechanisms", error))?;
    }
    Ok(set)
}

fn hostbased(service: &str) -> Result<Name, Failure> {
    Name::new(service.as_bytes(), Some(GSS_NT_HOSTBASED_SERVICE)).map_err(|error| failure("reading the name", error))
}

/// Parses a principal. One without a realm gets the default realm.
fn principal(text: &str) -> Result<Name, Failure> {
    Name::new(text.as_bytes(), Some(GSS_NT_KRB5_PRINCIPAL))
        .and_then(|name| name.canonicalize(Some(GSS_MECH_KRB5)))
        .map_err(|error| failure("reading the principal", error))
}

fn text_of(name: &Name) -> Result<Arc<str>, Failure> {
    let text = name.display_name().map_err(|error| failure("reading a name", error))?;
    // Two principals never share one text, because it's the owner of connections.
    let text = str::from_utf8(&text).map_err(|_| Failure::new(Reason::Refused, "a principal isn't UTF-8"))?;
    Ok(text.into())
}

/// Takes the library's text at once, because it's kept for the thread of the call only.
fn failure(doing: &str, error: Error) -> Failure {
    let reason = match error.minor.cast_signed() {
        code if UNREACHABLE.contains(&code) => Reason::Unreachable,
        REALM_UNKNOWN => Reason::Front,
        _ => Reason::Refused,
    };
    let text = error.to_string();
    // The library's text for some errors.
    let hint =
        if text.contains("(Success)") { "; the library has no reason: check krb5.conf and KRB5_CONFIG" } else { "" };
    Failure::new(reason, format!("{doing}: {}{hint}", text.trim_end()))
}
