"""A shop's site in Django: ``python site.py HOST PORT DATABASE``.  Ordinary code; what it sends is captured."""

import datetime as dt
import decimal
import io
import sys
import types
from pathlib import Path

import django
from django.conf import settings

shop = sys.modules["shop"] = types.ModuleType("shop")
shop.__path__ = [str(Path(__file__).parent / "no-such-package")]

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "HOST": sys.argv[1], "PORT": sys.argv[2],
                           "NAME": sys.argv[3], "USER": "postgres"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions",
                    "django.contrib.messages", "django.contrib.admin", "shop"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "django.contrib.messages.middleware.MessageMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
                "OPTIONS": {"context_processors": ["django.template.context_processors.request",
                                                   "django.contrib.auth.context_processors.auth",
                                                   "django.contrib.messages.context_processors.messages"]}}],
    ROOT_URLCONF=__name__, SECRET_KEY="x", USE_TZ=True, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    ALLOWED_HOSTS=["*"], PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
)  # fmt: skip
django.setup()

from django.contrib import admin  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.paginator import Paginator  # noqa: E402
from django.db import IntegrityError, models, transaction  # noqa: E402
from django.db.models import (  # noqa: E402
    Avg, Case, Count, DecimalField, Exists, ExpressionWrapper, F, Max, Min, OuterRef, Prefetch, Q, Subquery, Sum, Value,
    When, Window,
)  # fmt: skip
from django.db.models.functions import (  # noqa: E402
    Coalesce, Concat, ExtractYear, Length, Lower, Rank, RowNumber, TruncDate, TruncMonth, Upper,
)  # fmt: skip
from django.test import Client  # noqa: E402
from django.urls import path  # noqa: E402


class Country(models.Model):
    code = models.CharField(max_length=2, primary_key=True)
    name = models.TextField()

    class Meta:
        app_label, managed, db_table = "shop", False, "countries"


class Customer(models.Model):
    name = models.CharField(max_length=100)
    email = models.CharField(max_length=200, unique=True)
    country = models.ForeignKey(Country, models.PROTECT, db_column="country")
    joined = models.DateField()
    active = models.BooleanField(default=True)
    notes = models.TextField(null=True)

    class Meta:
        app_label, managed, db_table = "shop", False, "customers"


class Address(models.Model):
    id = models.AutoField(primary_key=True)
    customer = models.ForeignKey(Customer, models.CASCADE, related_name="addresses")
    street = models.TextField()
    city = models.TextField()
    postcode = models.CharField(max_length=12, null=True)

    class Meta:
        app_label, managed, db_table = "shop", False, "addresses"


class Product(models.Model):
    id = models.AutoField(primary_key=True)
    sku = models.CharField(max_length=20, unique=True)
    title = models.TextField()
    price = models.DecimalField(max_digits=10, decimal_places=2)
    stock = models.IntegerField(default=0)
    attributes = models.JSONField(default=dict)

    class Meta:
        app_label, managed, db_table = "shop", False, "products"


class Order(models.Model):
    customer = models.ForeignKey(Customer, models.PROTECT, related_name="orders")
    placed = models.DateTimeField()
    total = models.DecimalField(max_digits=12, decimal_places=2)
    reference = models.UUIDField(null=True)

    class Meta:
        app_label, managed, db_table = "shop", False, "orders"


class CustomerAdmin(admin.ModelAdmin):
    list_display = ("name", "email", "country", "active")
    list_filter = ("active", "country")
    search_fields = ("name", "email")
    date_hierarchy = "joined"
    list_select_related = ("country",)
    list_per_page = 20


admin.site.register(Customer, CustomerAdmin)
admin.site.register(Product)
urlpatterns = [path("admin/", admin.site.urls)]


def browse() -> None:
    """What pages show."""
    list(Customer.objects.all()[:10])
    Customer.objects.get(pk=3)
    Customer.objects.filter(email="c3@example.org").first()
    Customer.objects.filter(country_id="BE").order_by("-joined").last()
    list(Customer.objects.filter(name__icontains="er 1").order_by("id"))
    list(Customer.objects.filter(name__startswith="Customer 2").exclude(active=False).order_by("id"))
    list(Customer.objects.filter(name__iexact="customer 7"))
    list(Customer.objects.filter(email__regex=r"^c[0-9]@").order_by("id"))
    list(Customer.objects.filter(Q(notes__isnull=True) | ~Q(active=True)).order_by("id"))
    list(Customer.objects.filter(joined__year=2024, joined__month=2).order_by("joined"))
    list(Customer.objects.filter(joined__range=(dt.date(2024, 1, 3), dt.date(2024, 1, 9))).order_by("id"))
    list(Customer.objects.filter(pk__in=[1, 2, 3]).values("id", "name").order_by("id"))
    list(Customer.objects.values_list("country", flat=True).distinct().order_by("country"))
    list(Customer.objects.only("name").order_by("id")[:3])
    list(Customer.objects.defer("notes").order_by("id")[5:8])
    Customer.objects.count()
    Customer.objects.filter(active=True).exists()
    Customer.objects.in_bulk([4, 5])
    page = Paginator(Customer.objects.order_by("id"), 25).page(2)
    list(page)
    list(Customer.objects.dates("joined", "month"))
    list(Order.objects.datetimes("placed", "day")[:3])
    list(Product.objects.filter(price__gte=decimal.Decimal("40")).order_by("price"))
    list(Product.objects.filter(attributes__colour="red").order_by("id"))
    list(Product.objects.filter(attributes__weight__gt=35).order_by("id"))
    list(Product.objects.filter(attributes__has_key="weight").order_by("id")[:2])
    list(Product.objects.filter(stock__gt=F("price")).order_by("id")[:5])


def report() -> None:
    """Joins and aggregates."""
    list(Order.objects.select_related("customer__country").order_by("id")[:5])
    list(Customer.objects.prefetch_related("orders", "addresses").order_by("id")[:4])
    list(Customer.objects.prefetch_related(Prefetch("orders", Order.objects.filter(total__gt=100))).order_by("id")[:4])
    list(Customer.objects.annotate(n=Count("orders")).filter(n__gt=3).order_by("-n", "id")[:5])
    list(Customer.objects.annotate(spent=Coalesce(Sum("orders__total"), Value(0), output_field=DecimalField())).order_by("-spent", "id")[:5])
    Order.objects.aggregate(Sum("total"), Avg("total"), Max("placed"), Min("total"), n=Count("id"), people=Count("customer", distinct=True))
    list(Order.objects.values("customer__country__name").annotate(total=Sum("total")).order_by("customer__country__name"))
    list(Order.objects.annotate(month=TruncMonth("placed")).values("month").annotate(n=Count("id")).order_by("month"))
    list(Order.objects.annotate(day=TruncDate("placed")).values("day").annotate(n=Count("id")).order_by("day")[:3])
    list(Order.objects.values(year=ExtractYear("placed")).annotate(n=Count("id")).order_by("year"))
    latest = Order.objects.filter(customer=OuterRef("pk")).order_by("-placed")
    list(Customer.objects.annotate(last=Subquery(latest.values("placed")[:1])).order_by("id")[:4])
    list(Customer.objects.annotate(big=Exists(latest.filter(total__gt=600))).filter(big=True).order_by("id"))
    list(Customer.objects.filter(orders__total__gt=650).distinct().order_by("id"))
    list(Customer.objects.annotate(level=Case(When(active=True, then=Value("on")), default=Value("off"))).order_by("id")[:3])
    list(Customer.objects.annotate(tag=Concat(Upper("country"), Value("-"), Lower("name")), size=Length("email")).order_by("id")[:3])
    list(Product.objects.annotate(value=ExpressionWrapper(F("price") * F("stock"), output_field=DecimalField())).order_by("-value", "id")[:3])
    list(Order.objects.annotate(place=Window(Rank(), partition_by=F("customer"), order_by=F("total").desc())).order_by("id")[:5])
    list(Order.objects.annotate(n=Window(RowNumber(), order_by=F("id").asc())).order_by("id")[:5])
    list(Customer.objects.filter(country="BE").union(Customer.objects.filter(country="NL")).order_by("id")[:5])
    list(Customer.objects.filter(pk__in=Order.objects.filter(total__lt=20).values("customer")).order_by("id"))
    list(Customer.objects.raw("SELECT id, name FROM customers WHERE active AND id < %s ORDER BY id", [5]))


def work() -> None:
    """Writes."""
    customer = Customer.objects.create(name="Site", email="site@example.org", country_id="BE", joined=dt.date(2026, 3, 1))
    customer.notes = "changed"
    customer.save()
    customer.save(update_fields=["notes"])
    customer.refresh_from_db()
    Customer.objects.get_or_create(email="site@example.org", defaults={"name": "x"})
    Customer.objects.get_or_create(email="site2@example.org", defaults={"name": "Two", "country_id": "NL", "joined": dt.date(2026, 3, 2)})
    Customer.objects.update_or_create(email="site2@example.org", defaults={"notes": "again"})
    Address.objects.bulk_create([Address(customer=customer, street=f"{n} Street", city="Here") for n in range(3)])
    addresses = list(customer.addresses.order_by("id"))
    for address in addresses:
        address.postcode = "1000"
    Address.objects.bulk_update(addresses, ["postcode"])
    Product.objects.filter(stock__lt=10).update(stock=F("stock") + 5)
    Product.objects.bulk_create([Product(sku=f"DJ-{n}", title="t", price=1) for n in range(2)], update_conflicts=True, unique_fields=["sku"], update_fields=["title"])
    Country.objects.bulk_create([Country(code="BE", name="no"), Country(code="IT", name="Italy")], ignore_conflicts=True)
    with transaction.atomic():
        locked = Product.objects.select_for_update().get(pk=2)
        locked.stock -= 1
        locked.save()
        Order.objects.create(customer=customer, placed=dt.datetime(2026, 3, 3, tzinfo=dt.UTC), total=5)
    try:
        with transaction.atomic():
            Customer.objects.create(name="x", email="c1@example.org", country_id="BE", joined=dt.date(2026, 3, 1))
    except IntegrityError:
        pass
    with transaction.atomic():
        Country.objects.filter(code="IT").delete()
        transaction.set_rollback(True)
    Order.objects.filter(customer=customer).delete()
    customer.addresses.all().delete()
    Customer.objects.filter(email__startswith="site").delete()


def administer() -> None:
    """Django's own applications."""
    client = Client()
    client.post("/admin/login/", {"username": "boss", "password": "secret"})
    for address in ("", "shop/customer/", "shop/customer/?q=er+2", "shop/customer/?active__exact=1&p=1", "shop/customer/3/change/",
                    "shop/product/", "auth/user/", "auth/group/add/"):  # fmt: skip
        assert client.get(f"/admin/{address}").status_code == 200, address
    client.post("/admin/shop/product/1/change/", {"sku": "SKU-1", "title": "Edited", "price": "1.25", "stock": "3", "attributes": "{}"})
    client.post("/admin/logout/")
    User.objects.filter(groups__permissions__codename="add_user").distinct().count()
    User.objects.get(username="boss").get_all_permissions()


if len(sys.argv) > 4:
    call_command("migrate", verbosity=0)
    User.objects.create_superuser("boss", "boss@example.org", "secret")
else:
    for each in (browse, report, work, administer):
        each()
    call_command("inspectdb", stdout=io.StringIO())
    call_command("check", databases=["default"])
