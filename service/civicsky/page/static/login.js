// Exchanges the token for a cookie that no script can read. The token is sent once, in a body, and kept nowhere.

const form = document.getElementById("login");
const field = document.getElementById("token");
const why = document.getElementById("why");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = field.value;
  field.value = "";
  why.textContent = "One moment.";
  let told = "The service does not answer; try again.";
  try {
    const answer = await fetch("/page/login", { method: "POST", body: token, headers: { "Content-Type": "text/plain" } });
    if (answer.ok) {
      location.replace("/");
      return;
    }
    told = answer.status === 429 ? "Too many tries; wait a little, and try again." : "This is not the token; try again.";
  } catch {
    // told above
  }
  why.textContent = told;
  field.focus();
});
