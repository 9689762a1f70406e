//! Panics of wrong options point at the caller's line.

use std::{
    cell::RefCell,
    panic::{self, UnwindSafe},
    sync::Once,
};

use tower_reverse_proxy::{
    BasicAuthLayer, Client, Forwarded, RemoteUserLayer, ReverseProxy, ReverseProxyLayer, Upstream,
};

thread_local! {
    /// The location of this thread's last panic, while it is recorded.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The file and line of a panic.
fn place_of<T>(panics: impl FnOnce() -> T + UnwindSafe) -> String {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
            let listens = PLACE.with_borrow_mut(|listening| match listening {
                Some(listening) => {
                    *listening = place.unwrap_or_default();
                    true
                }
                None => false,
            });
            if !listens {
                before(info);
            }
        }));
    });
    PLACE.set(Some(String::new()));
    assert!(panic::catch_unwind(|| drop(panics())).is_err(), "it panics");
    PLACE.take().unwrap()
}

#[test]
fn panics_point_at_the_line_of_the_wrong_option() {
    let layer = || ReverseProxyLayer::new("http://127.0.0.1:9");
    for (line, place) in [
        (line!(), place_of(|| ReverseProxyLayer::new("nonsense"))),
        (line!(), place_of(|| ReverseProxy::new("nonsense"))),
        (line!(), place_of(|| layer().prefix("nonsense"))),
        (line!(), place_of(|| layer().replace_prefix("nonsense"))),
        (line!(), place_of(|| layer().via("a b"))),
        (line!(), place_of(|| layer().allow_upgrade("h2c"))),
        (line!(), place_of(|| layer().hide_cookies(["a b"]))),
        (line!(), place_of(|| ReverseProxyLayer::new(Client::builder("http://127.0.0.1:9").max_connections(0)))),
        (line!(), place_of(|| Upstream::new("nonsense"))),
        (line!(), place_of(|| Forwarded::new().proto("ftp"))),
        (line!(), place_of(|| Forwarded::new().trust(["nonsense"]))),
        (line!(), place_of(|| RemoteUserLayer::new().header("a b"))),
        (line!(), place_of(|| Upstream::new("http://127.0.0.1:9").host("u:p@a"))),
        (line!(), place_of(|| BasicAuthLayer::new("a:b", "x"))),
        (line!(), place_of(|| BasicAuthLayer::new("a", "x\n"))),
        (line!(), place_of(|| BasicAuthLayer::remote_user("x\n"))),
        (line!(), place_of(|| RemoteUserLayer::new().challenge(""))),
    ] {
        assert_eq!(place, format!("{}:{line}", file!()));
    }
}

#[test]
fn the_panic_of_a_wrong_user_name_shows_no_password() {
    let payload = panic::catch_unwind(|| BasicAuthLayer::new("alice:s3cret", "")).unwrap_err();
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap();
    assert!(message.contains("without a colon") && !message.contains("s3cret"), "{message}");
}
