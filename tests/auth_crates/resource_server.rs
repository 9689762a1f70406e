//! tower-oauth2-resource-server, which verifies the bearer token of a client and inserts its claims.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use tower::ServiceBuilder;
use tower_oauth2_resource_server::{
    server::OAuth2ResourceServer, tenant::TenantConfiguration, validation::ClaimsValidationSpec,
};
use tower_reverse_proxy::{BasicAuthLayer, RemoteUserLayer, ReverseProxyLayer};

use crate::{
    forwarded,
    support::{front, get, mirror},
};

/// The claims that the application reads, and only they.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    groups: Vec<String>,
}

const ISSUER: &str = "https://login.example";

/// The issuer of tokens, with a key for ES256.
struct Issuer(KeyPair);

impl Issuer {
    fn new() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    /// The JSON Web Key Set.
    fn keys(&self) -> String {
        // 4, and the two coordinates.
        let [x, y] = [1..33, 33..65].map(|at| BASE64_URL_SAFE_NO_PAD.encode(&self.0.der_bytes()[at]));
        format!(r#"{{"keys":[{{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k1","x":"{x}","y":"{y}"}}]}}"#)
    }

    /// A client's field with a token for this audience, which expires in so many seconds.
    fn token(&self, audience: &str, expires_in: i64) -> String {
        #[derive(Serialize)]
        struct Token<'a> {
            iss: &'a str,
            aud: &'a str,
            exp: i64,
            #[serde(flatten)]
            claims: Claims,
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).as_ref().map(Duration::as_secs).unwrap();
        let claims = Claims { sub: "alice".into(), groups: vec!["staff".into(), "ops".into()] };
        let token = Token { iss: ISSUER, aud: audience, exp: i64::try_from(now).unwrap() + expires_in, claims };
        let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::ES256) };
        let key = EncodingKey::from_ec_der(self.0.serialized_der());
        format!("Authorization: Bearer {}\r\n", jsonwebtoken::encode(&header, &token, &key).unwrap())
    }

    async fn server(&self) -> OAuth2ResourceServer<Claims> {
        // `TenantConfiguration::builder(ISSUER)` fetches the keys instead.
        let tenant = TenantConfiguration::static_builder(self.keys())
            .claims_validation(ClaimsValidationSpec::new().iss(ISSUER).aud(&vec!["front".to_owned()]).exp(true))
            .build()
            .unwrap();
        OAuth2ResourceServer::builder().add_tenant(tenant).build().await.unwrap()
    }
}

fn layer() -> RemoteUserLayer {
    RemoteUserLayer::from_extension(|claims: &Claims| Some(claims.sub.clone()))
        .also_list("Remote-Groups", ',', |claims: &Claims| claims.groups.clone())
        .required(true)
}

#[tokio::test]
async fn the_subject_of_a_verified_token_is_sent_with_the_groups() {
    let issuer = Issuer::new();
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").upstream_layer(layer());
    // In the order in which they see a request.
    let layers = ServiceBuilder::new().layer(issuer.server().await.into_layer()).layer(proxy);
    let addr = front(Router::new().layer(layers)).await;
    let mirrored = forwarded(addr, &issuer.token("front", 300)).await;
    assert_eq!((mirrored.field("remote-user"), mirrored.field("remote-groups")), (Some("alice"), Some("staff,ops")));
    for fields in ["", &issuer.token("other", 300), &issuer.token("front", -300), &Issuer::new().token("front", 300)] {
        assert_eq!(get(addr, "/legacy/x", fields).await.status(), 401, "{fields}");
    }
}

#[tokio::test]
async fn all_of_it_stacks_on_the_upstream_side() {
    let issuer = Issuer::new();
    let layers = ServiceBuilder::new()
        .layer(issuer.server().await.into_layer())
        .layer(layer())
        // The client's token isn't for the backend.
        .layer(BasicAuthLayer::remote_user("s3cret"));
    let proxy = ReverseProxyLayer::new(mirror().await).prefix("/legacy").upstream_layer(layers);
    let addr = front(Router::new().layer(proxy)).await;
    let mirrored = forwarded(addr, &issuer.token("front", 300)).await;
    assert_eq!((mirrored.field("remote-user"), mirrored.field("remote-groups")), (Some("alice"), Some("staff,ops")));
    // `alice:s3cret`
    assert_eq!(mirrored.field("authorization"), Some("Basic YWxpY2U6czNjcmV0"));
    assert_eq!(get(addr, "/legacy/x", "").await.status(), 401);
}
