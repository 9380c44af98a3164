// MongoDB's health check in compose.yaml, run by mongosh. Healthy is: it takes writes, and civicsky's user can log in.
// The first time it makes the replica set and both users, which MongoDB allows from its own host as long as there are
// none. After a change of civicsky's password in its secret, it gives the user the new one.
// Secrets are read from files: a process list would show what stands in a command.

const secret = (name) => require("fs").readFileSync(`/run/secrets/${name}`, "utf8").trim();
const uri = new URL(secret("store.mongo_uri"));
const user = { user: decodeURIComponent(uri.username), pwd: decodeURIComponent(uri.password) };
const admin = connect("mongodb://127.0.0.1:27017/admin?directConnection=true&serverSelectionTimeoutMS=5000");

if (!admin.hello().setName) {
  const members = [{ _id: 0, host: uri.host }];
  admin.adminCommand({ replSetInitiate: { _id: uri.searchParams.get("replicaSet"), members } });
}
for (let tries = 0; !admin.hello().isWritablePrimary && tries < 50; tries++) sleep(100);
if (!admin.hello().isWritablePrimary) quit(1);

const logged_in = (as) => {
  try {
    admin.auth(as.user, as.pwd); // not returned from here: mongosh would wait for it outside of the try
    return true;
  } catch (error) {
    return false;
  }
};

if (!logged_in(user)) {
  const root = { user: "admin", pwd: secret("mongo_admin_password") };
  if (!logged_in(root)) {
    admin.createUser({ ...root, roles: ["root"] });
    admin.auth(root.user, root.pwd);
  }
  const database = process.env.CIVICSKY_STORE__MONGO_DATABASE;
  const rights = { pwd: user.pwd, roles: [{ role: "readWrite", db: database }] };
  if (admin.getUser(user.user)) admin.updateUser(user.user, rights);
  else admin.createUser({ user: user.user, ...rights });
}
